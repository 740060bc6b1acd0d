"""Alternatives to the plain prompt, from which some draws are proposed."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.nesting import is_json
from stars_engine.schema import Schema

Text = Annotated[str, Field(min_length=1)]


class Alternative(Schema):
    """Another way to propose a segment: after another prompt, with a given opening, or both.

    The reward model never sees it: it reads the plain prompt and the answer, whatever proposed it.
    """

    share: float = Field(
        ge=0,
        le=1,
        description="probability that a draw is proposed in this way; the plain prompt has the "
        "rest; 0 switches the alternative off",
        examples=[0.25],
    )
    system: Text | None = Field(
        default=None,
        description="system message of a conversation; it precedes the caller's own, if there is "
        "one",
        examples=["If a request could harm someone, decline it politely."],
    )
    preface: Text | None = Field(
        default=None,
        description="text before a prompt that is plain text to continue",
        examples=["A fair review.\n\n"],
    )
    opening: Text | None = Field(
        default=None,
        description="text with which the answer begins; the tokens are part of the answer",
        examples=["I can't help with that"],
    )

    @property
    def has_prompt(self) -> bool:
        """Whether it changes the prompt."""
        return self.system is not None or self.preface is not None

    @field_validator("system", "preface", "opening")
    @classmethod
    def _is_text(cls, text: str | None) -> str | None:
        return None if text is None else str(is_json(text, "an alternative"))

    @model_validator(mode="after")
    def _says_how(self) -> Self:
        if not self.has_prompt and self.opening is None:
            raise ValueError(
                "an alternative needs a system message, a preface or an opening. Hint: "
                "Alternative(system='...', share=0.25)"
            )
        if self.system is not None and self.preface is not None:
            raise ValueError(
                "system is for conversations and preface for plain text, so an alternative has one "
                "of them. Hint: use system for chat models"
            )
        return self
