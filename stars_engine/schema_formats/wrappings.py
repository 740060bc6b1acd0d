"""Read JSON schemas and tools from the wrappings of several vendors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stars_engine.problems import ConfigError, PromptError
from stars_engine.schema_formats.dialects import as_json_schema, of_cohere
from stars_engine.schema_formats.listings import lists_tools
from stars_engine.schema_formats.parts import ANNOTATIONS, KEYWORDS, TYPES, at, problem, rooted
from stars_engine.schema_formats.vendor_keys import (
    ALLOWED,
    COHERE,
    ENVELOPES,
    FACTS,
    HOLDERS,
    HOSTED,
    LISTING,
    LISTS,
    NAMES,
    OTHER_GRAMMARS,
    OUTPUT,
    RESULT,
    SETTINGS,
    WRAPPING_TYPES,
    present,
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
        names = ", ".join(one.name or "one without a name" for one in found) or "none"
        hint = "pass each of them by itself, or pass tools as tools, as in bind_tools([...])"
        raise problem(owner, "", f"expected one schema, got {len(found)}: {names}. Hint: {hint}")
    [one] = found
    if one.schema is None:
        keys = ", ".join(map(repr, value))
        message = f"there is no schema, only {keys}; allowed: {ALLOWED}. Hint: add the schema"
        raise problem(owner, "", message)
    return one


def read_tools(value: Mapping[str, Any], *, owner: str = "tools") -> list[NamedSchema]:
    """Return the tools that a dictionary describes: one, or a list of them.

    Args:
        value: A tool in the format of any vendor, a list of tools such as Gemini's declarations,
            or a JSON schema with a title.
        owner: The name of the value in errors.

    Raises:
        PromptError: The tool runs on its provider's servers.
        ConfigError: The dictionary is not a tool, or has no name.
    """
    _refuse_hosted(value)
    found = _read(value, owner, "", is_tool=True)
    for tool in found:
        if not tool.name:
            message = "a tool needs a name. Hint: add 'name' next to the schema, or 'title' in it"
            raise problem(owner, "name", message)
    return found


def is_wrapped(value: Mapping[str, Any]) -> bool:
    """Whether a dictionary has the wrapping of a vendor other than that of an OpenAI function."""
    keys = {*HOLDERS, *COHERE, *OUTPUT, *ENVELOPES, *SETTINGS, *LISTS} - {"parameters"}
    return bool(keys & value.keys()) or value.get("type") in ("function", "custom")


def is_schema(value: Mapping[str, Any]) -> bool:
    """Whether a dictionary is a JSON schema itself, valid or not.

    It has a keyword and no type of a wrapping, or it has nothing but keywords and annotations.
    """
    if isinstance(value.get("format"), Mapping):
        return False
    is_typed = not isinstance(value.get("type"), str) or value["type"] in TYPES
    has_keyword = bool(value.keys() & KEYWORDS - {"format"})
    return (is_typed and has_keyword) or value.keys() <= KEYWORDS | ANNOTATIONS


def type_of_answer(value: Any) -> str | None:
    """Return the type of a format that has no schema, "text" or "json_object", in any wrapping."""
    while isinstance(value, Mapping):
        if set(value) == {"type"}:
            return value["type"] if value["type"] in ("text", "json_object") else None
        inner = present(value, (*ENVELOPES, *SETTINGS))
        value = value[inner[0]] if len(value) == len(inner) == 1 else None
    return None


# --- reading ---


def _read(value: Any, owner: str, path: str, *, is_tool: bool = False) -> list[NamedSchema]:
    if not isinstance(value, Mapping):
        raise _not_a_mapping(value, owner, path)
    if any(not isinstance(key, str) for key in value):
        raise problem(owner, path, "the keys of a schema must be strings. Hint: rename them")
    if lists_tools(value):
        if RESULT in value:
            return _read(value[RESULT], owner, at(path, RESULT))
        return _in_list(value, present(value, LISTS)[0], owner, path)
    if (envelope := _envelope_of(value)) is not None:
        return _in_envelope(value, envelope, owner, path, is_tool=is_tool)
    held = present(value, {*HOLDERS, *COHERE})
    if not held and not is_tool:
        held = present(value, OUTPUT)
    if len(held) > 1:
        names = " and ".join(map(repr, held))
        raise problem(owner, path, f"{names} are both schemas. Hint: give only one of them")
    if held:
        return [_beside_facts(value, held[0], owner, path)]
    return [_bare(value, owner, path)]


def _envelope_of(value: Mapping[str, Any]) -> str | None:
    """Return the key of the envelope in a dictionary; None if there is none."""
    keys = [*ENVELOPES, *SETTINGS]
    if value.get("type") in WRAPPING_TYPES:
        keys.append("value")  # Text Generation Inference
    for key in present(value, keys):
        if isinstance(value[key], Mapping) or key in ("json", "jsonSchema", "json_schema"):
            return key
    return None


def _in_list(value: Mapping[str, Any], key: str, owner: str, path: str) -> list[NamedSchema]:
    _refuse_others(value, {key, *LISTING}, owner, path)
    found: list[NamedSchema] = []
    for index, part in enumerate(value[key]):
        if isinstance(part, Mapping):
            _refuse_hosted(part)
        found += _read(part, owner, at(at(path, key), str(index)), is_tool=True)
    return found


def _in_envelope(
    value: Mapping[str, Any], key: str, owner: str, path: str, *, is_tool: bool
) -> list[NamedSchema]:
    """Return the schemas in an envelope, with the facts next to it that they lack."""
    inner, inside = value[key], at(path, key)
    _refuse_others(value, {key, *NAMES, "id"}, owner, path)
    _refuse_type(value, owner, path)
    is_settings = key in SETTINGS and isinstance(inner, Mapping)
    # Without a format, they could look like a schema of their own.
    if is_settings and not present(inner, {*ENVELOPES, *SETTINGS, *HOLDERS, *OUTPUT}):
        raise _no_schema(inner, owner, inside)
    found = _read(inner, owner, inside, is_tool=is_tool)
    name, description, strict = _facts(value, {}, owner, path)
    return [
        replace(
            one,
            name=one.name or name,
            description=one.description or description,
            strict=one.strict if strict is None else strict,
        )
        for one in found
    ]


def _beside_facts(value: Mapping[str, Any], key: str, owner: str, path: str) -> NamedSchema:
    """Return the schema under a key, with the facts next to it."""
    _refuse_others(value, {*HOLDERS, *COHERE, *OUTPUT, *FACTS}, owner, path)
    _refuse_type(value, owner, path)
    if key in COHERE:
        schema = of_cohere(value[key], owner, at(path, key))
    else:
        schema = _held(value, key, owner, path)
    return NamedSchema(schema, *_facts(value, schema, owner, path))


def _held(value: Mapping[str, Any], key: str, owner: str, path: str) -> dict[str, Any]:
    inner, path = value[key], at(path, key)
    for wrapping in ("json", "jsonSchema"):  # Bedrock, and the AI SDK
        if isinstance(inner, Mapping) and set(inner) == {wrapping}:
            inner, path = inner[wrapping], at(path, wrapping)
    if not isinstance(inner, Mapping):
        raise _not_a_mapping(inner, owner, path)
    if not inner and key in ("parameters", "inputSchema", "input_schema"):
        return {"type": "object", "properties": {}}  # a common form of a tool without arguments
    schema = _bare(inner, owner, path).schema
    if schema is None:
        raise problem(owner, path, "there is a name, but no schema. Hint: add the schema")
    return schema


def _bare(value: Mapping[str, Any], owner: str, path: str) -> NamedSchema:
    """Return a schema without a wrapping, or a tool with a name and no arguments."""
    schema = {key: part for key, part in value.items() if key not in ("name", "strict")}
    empty = {*HOLDERS, *COHERE}
    schema = {key: part for key, part in schema.items() if key not in empty or part is not None}
    name, description, strict = _facts(value, schema, owner, path)
    schema = as_json_schema(schema, owner, path)
    is_schema = _is_schema(schema, owner, path)
    if not is_schema and "name" in value and set(schema) <= {*FACTS, *OUTPUT}:
        _refuse_type(value, owner, path)
        return NamedSchema(None, name, description, strict)
    if not is_schema:
        raise _no_schema(value, owner, path)
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
    if isinstance(kind, str) and kind not in (*TYPES, *WRAPPING_TYPES):
        allowed = ", ".join(TYPES)
        message = f"unknown type {kind!r}; expected one of {allowed}. Hint: correct it"
        raise problem(owner, at(path, "type"), message)
    if isinstance(kind, str) and kind in WRAPPING_TYPES:
        return False
    return bool(set(value) & KEYWORDS) or ("title" in value and set(value) <= ANNOTATIONS)


def _looks_like_schema(value: Mapping[str, Any]) -> bool:
    return bool({"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "items"} & value.keys())


def _facts(
    value: Mapping[str, Any], schema: Mapping[str, Any], owner: str, path: str
) -> tuple[str, str, bool | None]:
    facts, schema = [], rooted(dict(schema))
    for key in ("name", "description"):
        fact = value.get(key)
        if key == "name" and fact is None:
            fact = schema.get("title")
        elif key == "description" and fact is None:
            fact = schema.get("description")
        if fact is not None and not isinstance(fact, str):
            raise problem(owner, at(path, key), f"expected a string, got {fact!r}. Hint: give text")
        facts.append(fact or "")
    strict = value.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise problem(
            owner, at(path, "strict"), f"expected true or false, got {strict!r}. Hint: use true"
        )
    return facts[0], facts[1], strict


# --- refusals ---


def _refuse_others(value: Mapping[str, Any], allowed: set[str], owner: str, path: str) -> None:
    """Refuse keys that no format has, because their meaning is unknown."""
    others = [key for key in value if key not in allowed and not key.startswith("x-")]
    if others:
        key = others[0]
        message = f"unknown key next to a schema; allowed: {ALLOWED}"
        hint = "remove the key, or pass the schema alone"
        raise problem(owner, at(path, key), f"{message}. Hint: {hint}")


def _refuse_type(value: Mapping[str, Any], owner: str, path: str) -> None:
    kind = value.get("type")
    if kind is not None and kind not in WRAPPING_TYPES:
        message = (
            f"unknown wrapping type {kind!r}; expected "
            f"one of {', '.join(WRAPPING_TYPES)}. Hint: remove it"
        )
        raise problem(owner, at(path, "type"), message)


def _not_a_mapping(value: Any, owner: str, path: str) -> ConfigError:
    hint = "parse it with json.loads" if isinstance(value, str) else "give a JSON schema as a dict"
    return problem(owner, path, f"{type(value).__name__} is not a schema. Hint: {hint}")


def _no_schema(value: Mapping[str, Any], owner: str, path: str) -> ConfigError:
    keys = ", ".join(map(repr, value)) or "no keys"
    message = f"a dictionary with {keys} is not a JSON schema and does not contain one"
    if present(value, OTHER_GRAMMARS):
        hint = "for other grammars, use grammar=RegexGrammar(...), ChoiceGrammar(...) or "
        return problem(owner, path, f"{message}. Hint: {hint}EbnfGrammar(...)")
    return problem(owner, path, f"{message}; allowed: {ALLOWED}. Hint: pass the schema itself")


def _refuse_hosted(value: Mapping[str, Any]) -> None:
    """Refuse tools that run on their provider's servers.

    Raises:
        PromptError: The tool is one of them.
    """
    kind = value.get("type")
    known = kind is None or isinstance(kind, list) or str(kind).lower() in TYPES
    is_hosted = not known and kind not in WRAPPING_TYPES
    has_text = kind == "custom" and not present(value, HOLDERS)
    named = next((key for key in HOSTED if key in value), None)
    if is_hosted or has_text or named is not None:
        raise PromptError(
            f"the tool {(named or value.get('name') or kind)!r} runs on its provider's servers, "
            "but this model runs locally. Hint: use a function, a pydantic model or a BaseTool"
        )
