"""JSON schemas and tools as vendors wrap them: one reading for all who are given a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stars_engine.errors import PromptError
from stars_engine.schema_formats.dialects import as_json_schema, of_cohere
from stars_engine.schema_formats.parts import ANNOTATIONS, KEYWORDS, TYPES, at, problem, rooted

# Keys that hold the schema of a tool's arguments, or of an answer, beside a name and other facts:
# OpenAI, MCP, Anthropic and Bedrock, Gemini, LangChain, in both spellings.
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
# Keys that hold one of these formats as a whole.
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
_EMPTY = frozenset({*_HOLDERS, *_COHERE})  # where a dictionary is read that holds nothing
# What such a dictionary may say besides.
_FACTS = frozenset({"name", "title", "description", "strict", "type"})
# Facts that change nothing here: of MCP, Anthropic and Gemini.
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
    """A JSON schema, and what its wrapping says of it.

    Attributes:
        schema: The schema; None for a tool that takes no arguments.
        name: What it is called; empty where nothing says that.
        description: What it is for.
        strict: Whether objects have named properties only; None where nothing says that.
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
            told = {"title": self.name, "description": self.description}
            parameters = rooted(self.schema)
            parameters = {
                name: part
                for name, part in parameters.items()
                if name not in told or part != told[name]
            }
        return {"type": "function", "function": {**about, "parameters": parameters}}


def read_schema(value: Mapping[str, Any], *, owner: str = "schema") -> NamedSchema:
    """Return the JSON schema that a dictionary is or holds.

    Args:
        value: A JSON schema, or a wrapping of one.
        owner: What errors call it.

    Raises:
        ConfigError: It is neither, or holds several, or none.
    """
    found = _read(value, owner, "")
    if len(found) != 1:
        raise problem(owner, "", f"{len(found)} schemas are given, and one is needed")
    [one] = found
    if one.schema is None:
        keys = ", ".join(map(repr, value))
        raise problem(owner, "", f"there is no schema in it, only {keys}. Allowed: {ALLOWED}")
    return one


def read_tools(value: Mapping[str, Any], *, owner: str = "tools") -> list[NamedSchema]:
    """Return the tools that a dictionary describes: one, or a list of Gemini's declarations.

    Args:
        value: A tool of any vendor, or a JSON schema with a title.
        owner: What errors call it.

    Raises:
        PromptError: The tool is one that its provider runs.
        ConfigError: It is no tool, or has no name.
    """
    _refuse_hosted(value)
    found = _read(value, owner, "")
    for tool in found:
        if not tool.name:
            message = "a tool needs a name. Hint: 'name' beside the schema, or 'title' in it"
            raise problem(owner, "name", message)
    return found


def is_wrapped(value: Mapping[str, Any]) -> bool:
    """Whether a dictionary has a vendor's wrapping, other than that of an OpenAI function."""
    keys = {*_EMPTY, *_ENVELOPES, *_LISTS} - {"parameters"}
    return bool(keys & value.keys()) or value.get("type") in ("function", "custom")


# --- reading ---


def _read(value: Any, owner: str, path: str) -> list[NamedSchema]:
    if not isinstance(value, Mapping):
        message = f"{type(value).__name__} is no schema. Allowed: {ALLOWED}"
        raise problem(owner, path, message)
    if any(not isinstance(key, str) for key in value):
        raise problem(owner, path, "keys of a schema are text")
    for key in (*_LISTS, *_ENVELOPES):
        if (found := _in_envelope(value, key, owner, path)) is not None:
            return found
    held = [key for key in (*_HOLDERS, *_COHERE) if value.get(key) is not None]
    if len(held) > 1:
        names = " and ".join(map(repr, held))
        raise problem(owner, path, f"{names} are both schemas. Hint: give one of them")
    if held:
        return [_beside_facts(value, held[0], owner, path)]
    return [_bare(value, owner, path)]


def _in_envelope(
    value: Mapping[str, Any], key: str, owner: str, path: str
) -> list[NamedSchema] | None:
    """Return what stands in an envelope; None if there is none of this name."""
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
    """Return the schema that a key holds, with the facts that stand beside it."""
    _refuse_others(value, {*_HOLDERS, *_COHERE, *_FACTS, *_OTHER_FACTS}, owner, path)
    _refuse_type(value, owner, path)
    if key in _COHERE:
        schema = of_cohere(value[key], owner, at(path, key))
    else:
        schema = _held(value, key, owner, path)
    return NamedSchema(schema, *_facts(value, schema, owner, path))


def _held(value: Mapping[str, Any], key: str, owner: str, path: str) -> dict[str, Any]:
    """Return the schema that a key holds."""
    inner, path = value[key], at(path, key)
    if isinstance(inner, Mapping) and set(inner) == {"json"}:  # Bedrock
        inner, path = inner["json"], at(path, "json")
    if not isinstance(inner, Mapping):
        hint = "json.loads(...) of it" if isinstance(inner, str) else "a JSON schema as a dict"
        message = f"{type(inner).__name__} is no schema. Hint: {hint}"
        raise problem(owner, path, message)
    if not inner and key in ("parameters", "inputSchema", "input_schema"):
        return {"type": "object", "properties": {}}  # how many write a tool without arguments
    schema = _bare(inner, owner, path).schema
    if schema is None:
        raise problem(owner, path, "there is a name in it and no schema")
    return schema


def _bare(value: Mapping[str, Any], owner: str, path: str) -> NamedSchema:
    """Return a schema that stands by itself, or with a name and no arguments."""
    schema = {key: part for key, part in value.items() if key not in ("name", "strict")}
    schema = {key: part for key, part in schema.items() if key not in _EMPTY}
    name, description, strict = _facts(value, schema, owner, path)
    schema = as_json_schema(schema, owner, path)
    told = _is_schema(schema, owner, path)
    if not told and "name" in value and set(schema) <= {*_FACTS, *_OTHER_FACTS}:
        _refuse_type(value, owner, path)
        return NamedSchema(None, name, description, strict)
    if not told:
        keys = ", ".join(map(repr, value)) or "nothing"
        message = f"a dictionary of {keys} is no JSON schema, and none is known to be in it"
        raise problem(owner, path, f"{message}. Allowed: {ALLOWED}")
    for key in schema.keys() - KEYWORDS - ANNOTATIONS:
        if isinstance(schema[key], Mapping) and _looks_like_schema(schema[key]):
            message = (
                "a schema beside a schema, in a key that no format has. Hint: leave it out, or "
                "give it alone"
            )
            raise problem(owner, at(path, key), message)
    return NamedSchema(schema, name, description, strict)


def _is_schema(value: Mapping[str, Any], owner: str, path: str) -> bool:
    """Whether a dictionary says something in JSON schema's own words."""
    kind = value.get("type")
    if isinstance(kind, str) and kind not in (*TYPES, *_WRAPPING_TYPES):
        allowed = ", ".join(TYPES)
        raise problem(owner, at(path, "type"), f"{kind!r} is no type. Allowed: {allowed}")
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
            raise problem(owner, at(path, key), f"text is needed, and this is {fact!r}")
        facts.append(fact or "")
    strict = value.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise problem(owner, at(path, "strict"), f"{strict!r} is not allowed; true or false")
    return facts[0], facts[1], strict


# --- refusals ---


def _refuse_others(value: Mapping[str, Any], allowed: set[str], owner: str, path: str) -> None:
    """Refuse keys that no format has: what they would change is not known."""
    others = [key for key in value if key not in allowed and not key.startswith("x-")]
    if others:
        key = others[0]
        message = "no format has this key beside a schema. Hint: leave it out, or give the schema"
        raise problem(owner, at(path, key), f"{message} alone. Allowed: {ALLOWED}")


def _refuse_type(value: Mapping[str, Any], owner: str, path: str) -> None:
    kind = value.get("type")
    if kind is not None and kind not in _WRAPPING_TYPES:
        message = f"{kind!r} is no wrapping of a schema. Allowed: {', '.join(_WRAPPING_TYPES)}"
        raise problem(owner, at(path, "type"), message)


_HOSTED = ("googleSearch", "google_search", "codeExecution", "code_execution", "urlContext")


def _refuse_hosted(value: Mapping[str, Any]) -> None:
    """Refuse tools that run at their provider.

    Raises:
        PromptError: It is one.
    """
    kind = value.get("type")
    known = kind is None or isinstance(kind, list) or str(kind).lower() in TYPES
    is_hosted = not known and kind not in _WRAPPING_TYPES
    has_text = kind == "custom" and not any(value.get(key) is not None for key in _HOLDERS)
    named = next((key for key in _HOSTED if key in value), None)
    if is_hosted or has_text or named is not None:
        raise PromptError(
            f"the tool {(named or value.get('name') or kind)!r} runs on its provider's servers, "
            "and this model runs here. Hint: a function, a pydantic model or a BaseTool"
        )
