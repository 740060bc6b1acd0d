"""Report refused answers to LangChain's chains and agents.

Newer versions of langchain-core have an error and a content block for refusals. With older
versions, this module uses its own error and a field of the message.
"""

from __future__ import annotations

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
    """No draft was accepted, and the caller needs an answer.

    It is a `ModelRefusalError` if LangChain has that class (`langchain-core` 1.7.5), and otherwise
    a `LangChainException`. It is always an `AlignmentError`.

    Attributes:
        result: The accepted part of the answer and its metadata.
        raw_message: The answer as a message, or None.
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
    """Return the reason for a refusal, or its fallback text; None if the answer was not refused.

    Agents and graphs can branch on it:

        >>> "refused" if refusal_of(state["messages"][-1]) else "go on"
    """
    reason = message.additional_kwargs.get("refusal") if isinstance(message, AIMessage) else None
    return reason if isinstance(reason, str) else None


def refusal_in(result: StarsResult) -> str | None:
    """Return the same for a result of the engine."""
    if result.finish_reason not in _REFUSED:
        return None
    if result.finish_reason == "fallback":
        return result.segments[-1].text
    rewards = [attempt.reward for attempt in result.abandoned_attempts]
    best = f"; the best reward was {max(rewards):.3g}" if rewards else ""
    return f"none of {len(rewards)} drafts was accepted{best}"


def blocks_of(text: str, refusal: str) -> list[str | dict[Any, Any]]:
    """Return content blocks that end in a refusal."""
    said: list[str | dict[Any, Any]] = [text] if text else []  # the form of merged chunks
    return [*said, {"type": "refusal", "refusal": refusal}]
