"""Grammars that constrain the answers of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stars_engine.nesting import MAX_DEPTH, is_deeper, is_json
from stars_engine.schema import Schema
from stars_engine.schema_formats.pydantic_models import schema_of_model
from stars_engine.schema_formats.wrappings import is_schema, read_schema


class JsonGrammar(Schema):
    """JSON that conforms to a schema (draft 2020-12), with properties in the schema's order."""

    kind: Literal["json"] = "json"
    json_schema: dict[str, Any] = Field(
        default={"type": "object"},
        description="JSON schema of the answer, with or without the wrapping of a vendor, or a "
        "pydantic model; by default, any object",
        examples=[{"type": "object", "properties": {"city": {"type": "string"}}}],
    )
    compact: bool = Field(
        default=False,
        description="allow no whitespace between the parts; otherwise, allow one space, or a line "
        "break and indentation",
    )
    extra_properties: bool = Field(
        default=False,
        description="allow properties that the schema does not name, unless it forbids them",
    )

    @field_validator("json_schema", mode="before")
    @classmethod
    def _of_a_model(cls, value: Any) -> Any:
        schema = schema_of(value)
        if isinstance(schema, dict) and not is_schema(schema):
            schema = read_schema(schema, owner="JsonGrammar").schema
        if is_deeper(schema, MAX_DEPTH):
            raise ValueError(
                f"the schema is nested more than {MAX_DEPTH} levels deep. Hint: define its parts "
                "in $defs and refer to them"
            )
        return is_json(schema, "a schema")

    def __hash__(self) -> int:
        return hash(self.content_hash())


class RegexGrammar(Schema):
    """Text that a regular expression matches from its beginning to its end."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(
        min_length=1,
        description="regular expression for the whole answer, in the syntax of Rust's regex crate: "
        "that of Python without look-around and backreferences",
        examples=[r"\d{4}-\d{2}-\d{2}"],
    )


class ChoiceGrammar(Schema):
    """One of several texts."""

    kind: Literal["choice"] = "choice"
    choices: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="the allowed answers", examples=[["yes", "no"]]
    )


class EbnfGrammar(Schema):
    """Text of a context-free grammar."""

    kind: Literal["ebnf"] = "ebnf"
    text: str = Field(
        min_length=1,
        description="the grammar, in llguidance's variant of Lark syntax, or in GBNF; its first "
        "rule is `start`, or `root` in GBNF",
        examples=['start: "yes" | "no" " because " /[a-z ]+/'],
    )


Grammar = Annotated[
    JsonGrammar | RegexGrammar | ChoiceGrammar | EbnfGrammar, Field(discriminator="kind")
]


def as_grammar(value: Any) -> Any:
    """Convert a pydantic model to a grammar; return other values unchanged."""
    return JsonGrammar(json_schema=value) if isinstance(value, type) else value


def schema_of(value: Any) -> Any:
    """Convert a pydantic model to its JSON schema; return other values unchanged.

    Raises:
        ValueError: The value is a class, but not a pydantic model.
    """
    if not isinstance(value, type):
        return dict(value) if isinstance(value, Mapping) else value
    if not hasattr(value, "model_json_schema"):
        raise ValueError(
            f"{value.__name__} is not a pydantic model. Hint: give a JSON schema as a dict, or a "
            "subclass of pydantic.BaseModel"
        )
    return schema_of_model(value)
