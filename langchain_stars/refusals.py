"""Answers that alignment refused, as LangChain's chains and agents see them.

Newer cores have an error and a content block for that; where they are missing, an error and a
field of our own stand in for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core import exceptions, messages
from langchain_core.messages import AIMessage, BaseMessage

from stars_engine import AlignmentError, StarsResult

HAS_REFUSAL_BLOCKS = hasattr(messages, "RefusalContentBlock")
_REFUSED = ("rejected", "fallback")
_ModelRefusalError: type[Exception] = getattr(
    exceptions, "ModelRefusalError", exceptions.LangChainException
)


class StarsRefusalError(AlignmentError, _ModelRefusalError):  # type: ignore[misc, valid-type]
    """No draft of the model was good enough, and something needs one.

    A `ModelRefusalError` where LangChain has that (`langchain-core` 1.7.5), else a
    `LangChainException`; an `AlignmentError` everywhere.

    Attributes:
        result: What had been accepted before, and the account of it.
        raw_message: The answer as a message; None where there is none.
    """

    def __init__(
        self,
        message: str,
        result: StarsResult | None = None,
        raw_message: BaseMessage | None = None,
    ) -> None:
        AlignmentError.__init__(self, message, result)
        self.raw_message = raw_message


def refusal_of(message: BaseMessage) -> str | None:
    """Return why, or by what words, an answer was refused; None if it was not.

    What an agent or a graph branches on:

        >>> "refused" if refusal_of(state["messages"][-1]) else "go on"
    """
    told = message.additional_kwargs.get("refusal") if isinstance(message, AIMessage) else None
    return told if isinstance(told, str) else None


def refusal_in(result: StarsResult) -> str | None:
    """Return the same of an answer of the engine."""
    if result.finish_reason not in _REFUSED:
        return None
    if result.finish_reason == "fallback":
        return result.segments[-1].text
    rewards = [attempt.reward for attempt in result.abandoned_attempts]
    best = f"; the best reward was {max(rewards):.3g}" if rewards else ""
    return f"none of {len(rewards)} drafts was accepted{best}"


def blocks_of(text: str, refusal: str) -> list[str | dict[Any, Any]]:
    """Return a content that ends in a refusal."""
    said: list[str | dict[Any, Any]] = [text] if text else []  # as sums of chunks have it
    return [*said, {"type": "refusal", "refusal": refusal}]


@contextmanager
def as_refusal() -> Iterator[None]:
    """Raise an alignment error as a refusal."""
    try:
        yield
    except StarsRefusalError:
        raise
    except AlignmentError as error:
        raise StarsRefusalError(str(error), error.result) from error
