"""Grammars: which answers the language model can give at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stars_engine.model_schemas import schema_of_model
from stars_engine.schema import Schema, is_json

_MAX_DEPTH = 200


class JsonGrammar(Schema):
    """JSON that a schema allows (JSON Schema, draft 2020-12), properties in the schema's order."""

    kind: Literal["json"] = "json"
    json_schema: dict[str, Any] = Field(
        default={"type": "object"},
        description="JSON schema of the answer, or a pydantic model; as it stands: any object",
        examples=[{"type": "object", "properties": {"city": {"type": "string"}}}],
    )
    compact: bool = Field(
        default=False,
        description="no blanks between the parts; else one space, or a line break and indentation",
    )
    extra_properties: bool = Field(
        default=False,
        description="objects may have properties beyond those that the schema names, where it does "
        "not forbid them",
    )

    @field_validator("json_schema", mode="before")
    @classmethod
    def _of_a_model(cls, value: Any) -> Any:
        schema = schema_of(value)
        if _is_deeper(schema, _MAX_DEPTH):
            raise ValueError(
                f"a schema is not nested more than {_MAX_DEPTH} deep. Hint: name its parts in "
                "$defs, and refer to them"
            )
        return is_json(schema, "a schema")

    def __hash__(self) -> int:
        return hash(self.content_hash())


class RegexGrammar(Schema):
    """Text that a regular expression matches from its beginning to its end."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(
        min_length=1,
        description="regular expression of the whole answer, in the syntax of Rust's regex crate: "
        "Python's without look-around and back-references",
        examples=[r"\d{4}-\d{2}-\d{2}"],
    )


class ChoiceGrammar(Schema):
    """One of several texts."""

    kind: Literal["choice"] = "choice"
    choices: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="the answers there are", examples=[["yes", "no"]]
    )


class EbnfGrammar(Schema):
    """Text of a context-free grammar."""

    kind: Literal["ebnf"] = "ebnf"
    text: str = Field(
        min_length=1,
        description="the grammar, in Lark's syntax as llguidance reads it, or GBNF; it begins at "
        "the rule `start`, or `root` in GBNF",
        examples=['start: "yes" | "no" " because " /[a-z ]+/'],
    )


Grammar = Annotated[
    JsonGrammar | RegexGrammar | ChoiceGrammar | EbnfGrammar, Field(discriminator="kind")
]


def as_grammar(value: Any) -> Any:
    """Return the grammar that a pydantic model stands for, and all else as it is."""
    return JsonGrammar(json_schema=value) if isinstance(value, type) else value


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and mappings are nested deeper, without a call for each level."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (Mapping, list, tuple))
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    return bool(level)


def schema_of(value: Any) -> Any:
    """Return the JSON schema of a pydantic model, and all else as it is.

    Raises:
        ValueError: A class that is no pydantic model.
    """
    if not isinstance(value, type):
        return dict(value) if isinstance(value, Mapping) else value
    if not hasattr(value, "model_json_schema"):
        raise ValueError(
            f"{value.__name__} is no pydantic model. Hint: a JSON schema as a dict, or a subclass "
            "of pydantic.BaseModel"
        )
    return schema_of_model(value)
