"""Read JSON schemas and tools from the wrappings of several vendors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stars_engine.errors import PromptError
from stars_engine.schema_formats.dialects import as_json_schema, of_cohere
from stars_engine.schema_formats.parts import ANNOTATIONS, KEYWORDS, TYPES, at, problem, rooted

# Keys for the schema of a tool's arguments or of an answer, next to a name and other facts: OpenAI,
# MCP, Anthropic, Bedrock, Gemini and LangChain, in both spellings.
_HOLDERS = (
    "parameters",
    "inputSchema",
    "input_schema",
    "parametersJsonSchema",
    "parameters_json_schema",
    "schema",
    "args_schema",
    "argsSchema",
    "responseSchema",
    "response_schema",
    "responseJsonSchema",
    "response_json_schema",
)
_COHERE = ("parameter_definitions", "parameterDefinitions")
# Keys whose values are one of these formats.
_ENVELOPES = (
    "function",
    "toolSpec",
    "tool_spec",
    "json_schema",
    "jsonSchema",
    "format",
    "response_format",
    "responseFormat",
)
_LISTS = ("functionDeclarations", "function_declarations")
_EMPTY = frozenset({*_HOLDERS, *_COHERE})  # keys that may be null
# Other keys of such a dictionary.
_FACTS = frozenset({"name", "title", "description", "strict", "type"})
# Keys of MCP, Anthropic and Gemini that have no effect here.
_OTHER_FACTS = frozenset(
    {
        "_meta",
        "allowed_callers",
        "annotations",
        "behavior",
        "cache_control",
        "defer_loading",
        "eager_input_streaming",
        "execution",
        "icons",
        "id",
        "input_examples",
        "outputSchema",
        "output_schema",
        "response",
        "responseMimeType",
        "response_mime_type",
    }
)
_WRAPPING_TYPES = ("function", "custom", "json_schema", "json_object")

ALLOWED = (
    "a JSON schema, or one wrapped as OpenAI ('function', 'parameters', 'json_schema', 'schema'), "
    "MCP or Bedrock ('inputSchema', 'toolSpec'), Anthropic ('input_schema'), Gemini "
    "('functionDeclarations', 'responseSchema') or Cohere ('parameter_definitions') have it"
)


@dataclass(frozen=True, slots=True)
class NamedSchema:
    """A JSON schema, with the facts in its wrapping.

    Attributes:
        schema: The schema; None for a tool without arguments.
        name: The name; empty if not given.
        description: The purpose; empty if not given.
        strict: Whether objects have only named properties; None if not given.
    """

    schema: dict[str, Any] | None
    name: str = ""
    description: str = ""
    strict: bool | None = None

    def as_tool(self) -> dict[str, Any]:
        """Return a tool in the OpenAI format."""
        about = {"name": self.name, "description": self.description}
        parameters: dict[str, Any] = {"type": "object", "properties": {}}
        if self.schema is not None and self.schema.keys() & KEYWORDS:
            repeated = {"title": self.name, "description": self.description}
            parameters = rooted(self.schema)
            parameters = {
                name: part
                for name, part in parameters.items()
                if name not in repeated or part != repeated[name]
            }
        return {"type": "function", "function": {**about, "parameters": parameters}}


def read_schema(value: Mapping[str, Any], *, owner: str = "schema") -> NamedSchema:
    """Return the JSON schema that a dictionary is or contains.

    Args:
        value: A JSON schema, or a wrapping of one.
        owner: The name of the value in errors.

    Raises:
        ConfigError: The dictionary contains no schema, or several.
    """
    found = _read(value, owner, "")
    if len(found) != 1:
        raise problem(owner, "", f"expected one schema, got {len(found)}")
    [one] = found
    if one.schema is None:
        keys = ", ".join(map(repr, value))
        raise problem(owner, "", f"there is no schema, only {keys}. Allowed: {ALLOWED}")
    return one


def read_tools(value: Mapping[str, Any], *, owner: str = "tools") -> list[NamedSchema]:
    """Return the tools that a dictionary describes: one, or a list of Gemini's declarations.

    Args:
        value: A tool in the format of any vendor, or a JSON schema with a title.
        owner: The name of the value in errors.

    Raises:
        PromptError: The tool runs on its provider's servers.
        ConfigError: The dictionary is not a tool, or has no name.
    """
    _refuse_hosted(value)
    found = _read(value, owner, "")
    for tool in found:
        if not tool.name:
            message = "a tool needs a name. Hint: add 'name' next to the schema, or 'title' in it"
            raise problem(owner, "name", message)
    return found


def is_wrapped(value: Mapping[str, Any]) -> bool:
    """Whether a dictionary has the wrapping of a vendor other than that of an OpenAI function."""
    keys = {*_EMPTY, *_ENVELOPES, *_LISTS} - {"parameters"}
    return bool(keys & value.keys()) or value.get("type") in ("function", "custom")


# --- reading ---


def _read(value: Any, owner: str, path: str) -> list[NamedSchema]:
    if not isinstance(value, Mapping):
        message = f"{type(value).__name__} is not a schema. Allowed: {ALLOWED}"
        raise problem(owner, path, message)
    if any(not isinstance(key, str) for key in value):
        raise problem(owner, path, "the keys of a schema must be strings")
    for key in (*_LISTS, *_ENVELOPES):
        if (found := _in_envelope(value, key, owner, path)) is not None:
            return found
    held = [key for key in (*_HOLDERS, *_COHERE) if value.get(key) is not None]
    if len(held) > 1:
        names = " and ".join(map(repr, held))
        raise problem(owner, path, f"{names} are both schemas. Hint: give only one of them")
    if held:
        return [_beside_facts(value, held[0], owner, path)]
    return [_bare(value, owner, path)]


def _in_envelope(
    value: Mapping[str, Any], key: str, owner: str, path: str
) -> list[NamedSchema] | None:
    """Return the schemas in an envelope; None if there is no envelope with this name."""
    inner, inside = value.get(key), at(path, key)
    if key in _LISTS and isinstance(inner, list | tuple):
        _refuse_others(value, {key}, owner, path)
        read = (_read(part, owner, at(inside, str(index))) for index, part in enumerate(inner))
        return [one for found in read for one in found]
    if key in _LISTS or not isinstance(inner, Mapping):
        return None
    _refuse_others(value, {key, "type", "id", "strict"}, owner, path)
    _refuse_type(value, owner, path)
    found, strict = _read(inner, owner, inside), value.get("strict")
    return [replace(one, strict=strict) for one in found] if isinstance(strict, bool) else found


def _beside_facts(value: Mapping[str, Any], key: str, owner: str, path: str) -> NamedSchema:
    """Return the schema under a key, with the facts next to it."""
    _refuse_others(value, {*_HOLDERS, *_COHERE, *_FACTS, *_OTHER_FACTS}, owner, path)
    _refuse_type(value, owner, path)
    if key in _COHERE:
        schema = of_cohere(value[key], owner, at(path, key))
    else:
        schema = _held(value, key, owner, path)
    return NamedSchema(schema, *_facts(value, schema, owner, path))


def _held(value: Mapping[str, Any], key: str, owner: str, path: str) -> dict[str, Any]:
    """Return the schema under a key."""
    inner, path = value[key], at(path, key)
    if isinstance(inner, Mapping) and set(inner) == {"json"}:  # Bedrock
        inner, path = inner["json"], at(path, "json")
    if not isinstance(inner, Mapping):
        is_text = isinstance(inner, str)
        hint = "parse it with json.loads(...)" if is_text else "give a JSON schema as a dict"
        message = f"{type(inner).__name__} is not a schema. Hint: {hint}"
        raise problem(owner, path, message)
    if not inner and key in ("parameters", "inputSchema", "input_schema"):
        return {"type": "object", "properties": {}}  # a common form of a tool without arguments
    schema = _bare(inner, owner, path).schema
    if schema is None:
        raise problem(owner, path, "there is a name, but no schema")
    return schema


def _bare(value: Mapping[str, Any], owner: str, path: str) -> NamedSchema:
    """Return a schema without a wrapping, or a tool with a name and no arguments."""
    schema = {key: part for key, part in value.items() if key not in ("name", "strict")}
    schema = {key: part for key, part in schema.items() if key not in _EMPTY}
    name, description, strict = _facts(value, schema, owner, path)
    schema = as_json_schema(schema, owner, path)
    is_schema = _is_schema(schema, owner, path)
    if not is_schema and "name" in value and set(schema) <= {*_FACTS, *_OTHER_FACTS}:
        _refuse_type(value, owner, path)
        return NamedSchema(None, name, description, strict)
    if not is_schema:
        keys = ", ".join(map(repr, value)) or "no keys"
        message = f"a dictionary with {keys} is not a JSON schema and does not contain one"
        raise problem(owner, path, f"{message}. Allowed: {ALLOWED}")
    for key in schema.keys() - KEYWORDS - ANNOTATIONS:
        if isinstance(schema[key], Mapping) and _looks_like_schema(schema[key]):
            message = (
                "this unknown key contains a schema next to another schema. Hint: remove the key, "
                "or pass its schema alone"
            )
            raise problem(owner, at(path, key), message)
    return NamedSchema(schema, name, description, strict)


def _is_schema(value: Mapping[str, Any], owner: str, path: str) -> bool:
    """Whether a dictionary has keywords of JSON Schema."""
    kind = value.get("type")
    if isinstance(kind, str) and kind not in (*TYPES, *_WRAPPING_TYPES):
        allowed = ", ".join(TYPES)
        message = f"unknown type {kind!r}; expected one of {allowed}"
        raise problem(owner, at(path, "type"), message)
    if isinstance(kind, str) and kind in _WRAPPING_TYPES:
        return False
    return bool(set(value) & KEYWORDS) or ("title" in value and set(value) <= ANNOTATIONS)


def _looks_like_schema(value: Mapping[str, Any]) -> bool:
    return bool({"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "items"} & value.keys())


def _facts(
    value: Mapping[str, Any], schema: Mapping[str, Any], owner: str, path: str
) -> tuple[str, str, bool | None]:
    """Return name, description and strictness."""
    facts, schema = [], rooted(dict(schema))
    for key in ("name", "description"):
        fact = value.get(key)
        if key == "name" and fact is None:
            fact = schema.get("title")
        elif key == "description" and fact is None:
            fact = schema.get("description")
        if fact is not None and not isinstance(fact, str):
            raise problem(owner, at(path, key), f"expected a string, got {fact!r}")
        facts.append(fact or "")
    strict = value.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise problem(owner, at(path, "strict"), f"expected true or false, got {strict!r}")
    return facts[0], facts[1], strict


# --- refusals ---


def _refuse_others(value: Mapping[str, Any], allowed: set[str], owner: str, path: str) -> None:
    """Refuse keys that no format has, because their meaning is unknown."""
    others = [key for key in value if key not in allowed and not key.startswith("x-")]
    if others:
        key = others[0]
        message = "unknown key next to a schema. Hint: remove the key, or pass the schema alone"
        raise problem(owner, at(path, key), f"{message}. Allowed: {ALLOWED}")


def _refuse_type(value: Mapping[str, Any], owner: str, path: str) -> None:
    kind = value.get("type")
    if kind is not None and kind not in _WRAPPING_TYPES:
        message = f"unknown wrapping type {kind!r}; expected one of {', '.join(_WRAPPING_TYPES)}"
        raise problem(owner, at(path, "type"), message)


_HOSTED = ("googleSearch", "google_search", "codeExecution", "code_execution", "urlContext")


def _refuse_hosted(value: Mapping[str, Any]) -> None:
    """Refuse tools that run on their provider's servers.

    Raises:
        PromptError: The tool is one of them.
    """
    kind = value.get("type")
    known = kind is None or isinstance(kind, list) or str(kind).lower() in TYPES
    is_hosted = not known and kind not in _WRAPPING_TYPES
    has_text = kind == "custom" and not any(value.get(key) is not None for key in _HOLDERS)
    named = next((key for key in _HOSTED if key in value), None)
    if is_hosted or has_text or named is not None:
        raise PromptError(
            f"the tool {(named or value.get('name') or kind)!r} runs on its provider's servers, "
            "but this model runs locally. Hint: use a function, a pydantic model or a BaseTool"
        )
