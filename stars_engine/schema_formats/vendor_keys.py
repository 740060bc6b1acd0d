"""Keys of the wrappings in which vendors put JSON schemas."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def spelled(*keys: str) -> frozenset[str]:
    """Return keys in all spellings that vendors use: `inputSchema`, `input_schema`."""
    snake = {_snake(key) for key in keys}
    return frozenset({*keys, *snake})


def present(value: Mapping[str, Any], keys: Collection[str]) -> list[str]:
    """Return the keys of a dictionary that are among others, and not null."""
    return [key for key in value if key in keys and value[key] is not None]


def _snake(key: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)


# Keys for a schema next to a name and other facts: OpenAI, MCP, Anthropic, Gemini, Mistral, vLLM
# and LangChain.
HOLDERS = spelled(
    *("parameters", "inputSchema", "parametersJsonSchema", "schema", "argsSchema"),
    *("responseSchema", "responseJsonSchema", "requestedSchema", "schemaDefinition"),
    "guidedJson",
)
# The schema of an answer, which tools have in addition to the schema of their arguments.
OUTPUT = spelled("outputSchema")
COHERE = spelled("parameterDefinitions")
# Keys for a schema, or for any of these formats, next to its facts.
ENVELOPES = (
    *("function", "toolSpec", "tool_spec", "json_schema", "jsonSchema", "json"),
    *("format", "response_format", "responseFormat", "output_format", "outputFormat"),
)
# Keys for settings that contain a format, but are never schemas themselves.
SETTINGS = (
    *("text", "output_config", "outputConfig", "textFormat", "text_format", "structure"),
    *("structured_outputs", "structuredOutputs", "structured", "extra_body", "nvext"),
    *("generationConfig", "generation_config"),
)
LISTS = ("functionDeclarations", "function_declarations", "tools")
# Keys next to the tools that an MCP server lists, and around them in its answer.
LISTING = spelled("nextCursor", "_meta", "meta")
RESULT = "result"
ANSWER = frozenset({"jsonrpc", "id", RESULT})
# Keys for other grammars than JSON.
OTHER_GRAMMARS = spelled(
    *("regex", "choice", "grammar", "guidedRegex", "guidedChoice", "guidedGrammar"),
    *("structuralTag", "syntax", "ebnf"),
)
WRAPPING_TYPES = ("function", "custom", "json_schema", "json_object", "json", "text")
# Keys next to an envelope, and next to a schema.
NAMES = frozenset({"name", "title", "description", "strict", "type"})
# Keys of MCP, Anthropic and Gemini that have no effect here.
FACTS = NAMES | spelled(
    *("_meta", "allowedCallers", "annotations", "behavior", "cacheControl", "deferLoading"),
    *("eagerInputStreaming", "execution", "icons", "id", "inputExamples", "message", "mode"),
    *("response", "responseMimeType", "mimeType"),
)
HOSTED = ("googleSearch", "google_search", "codeExecution", "code_execution", "urlContext")

ALLOWED = (
    "a JSON schema, or one in the wrapping of OpenAI, MCP, Anthropic, Bedrock, Gemini, Mistral, "
    "vLLM or Cohere"
)
