"""One schema in the formats of all vendors, as a tool and as a response format."""

from __future__ import annotations

from typing import Any

S: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
}
GEMINI = {"type": "OBJECT", "properties": {"a": {"type": "INTEGER"}}, "required": ["a"]}

# Each is a tool called V, or the format of an answer.
TOOLS: dict[str, dict[str, Any]] = {
    "openai tool": {"type": "function", "function": {"name": "V", "parameters": S}},
    "openai strict": {
        "type": "function",
        "function": {"name": "V", "description": "d", "parameters": S, "strict": True},
    },
    "openai function": {"name": "V", "parameters": S},
    "openai responses": {"type": "function", "name": "V", "parameters": S, "strict": True},
    "mcp": {"name": "V", "inputSchema": S},
    "mcp, all it may say": {
        "name": "V",
        "title": "The V",
        "description": "d",
        "inputSchema": {"$schema": "http://json-schema.org/draft-07/schema#", **S},
        "outputSchema": {"type": "object"},
        "annotations": {"readOnlyHint": True},
        "icons": [],
        "_meta": {"v": 1},
    },
    "anthropic": {"name": "V", "input_schema": S, "cache_control": {"type": "ephemeral"}},
    "anthropic custom": {"type": "custom", "name": "V", "input_schema": S},
    "bedrock": {"toolSpec": {"name": "V", "inputSchema": {"json": S}}},
    "bedrock, inner": {"name": "V", "inputSchema": {"json": S}},
    "gemini": {"functionDeclarations": [{"name": "V", "parameters": GEMINI}]},
    "gemini, python": {"function_declarations": [{"name": "V", "parameters": GEMINI}]},
    "gemini declaration": {"name": "V", "parameters": GEMINI},
    "gemini, json schema": {"name": "V", "parametersJsonSchema": S},
    "a key of its own": {"name": "V", "jsonSchema": S},
    "a list of tools": {"tools": [{"name": "V", "inputSchema": S}]},
    "ai sdk": {"name": "V", "inputSchema": {"jsonSchema": S}},
    "cohere": {"name": "V", "parameter_definitions": {"a": {"type": "int", "required": True}}},
    "json schema, title": {"title": "V", **S},
    "json schema, name": {"name": "V", **S},
}
ANSWERS: dict[str, dict[str, Any]] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "V", "schema": S}},
    "inner": {"name": "V", "schema": S, "strict": True},
    "responses": {"format": {"type": "json_schema", "name": "V", "schema": S}},
    "json_object": {"type": "json_object", "schema": S},
    "cohere 2": {"type": "json_object", "json_schema": S},
    "anthropic": {"type": "json_schema", "schema": S},
    "gemini": {"responseMimeType": "application/json", "responseSchema": GEMINI},
    "gemini json": {"response_mime_type": "application/json", "response_json_schema": S},
    "gemini, settings": {
        "generationConfig": {"responseMimeType": "application/json", "responseJsonSchema": S}
    },
    "gemini, interactions": {"type": "text", "mime_type": "application/json", "schema": S},
    "responses, setting": {"text": {"format": {"type": "json_schema", "name": "V", "schema": S}}},
    "anthropic, format": {"output_format": {"type": "json_schema", "schema": S}},
    "anthropic, setting": {"output_config": {"format": {"type": "json_schema", "schema": S}}},
    "vllm": {"guided_json": S},
    "vllm, structured": {"structured_outputs": {"json": S}},
    "vllm, extra": {"extra_body": {"structured_outputs": {"json": S}}},
    "mistral": {
        "type": "json_schema",
        "json_schema": {"name": "V", "schema_definition": S, "strict": True},
    },
    "mcp, output": {"name": "V", "outputSchema": S},
    "mcp, elicitation": {"mode": "form", "message": "Hi", "requestedSchema": S},
    "bedrock, settings": {
        "outputConfig": {
            "textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": S}}}
        }
    },
    "text generation inference": {"type": "json", "value": S},
    "lm studio": {"structured": {"type": "json", "jsonSchema": S}},
    "ollama": {"format": S},
    "bare": S,
}
