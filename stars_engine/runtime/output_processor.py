"""Complete the events of an answer with what the algorithm does not know: its message and time."""

from __future__ import annotations

import time

from stars_engine.algorithm.rollout import Rollout
from stars_engine.chat.deltas import Deltas, Replies
from stars_engine.errors import RequestError
from stars_engine.types import SegmentEvent, StarsResult, ToolCallDelta


class OutputProcessor:
    """Completes the events of one answer, in their order.

    Args:
        rollout: The trajectory of the answer.
        replies: Parses the answer as an assistant message; None if it is plain text.
        submitted_s: When the request was submitted, on the monotonic clock.
    """

    def __init__(self, rollout: Rollout, replies: Replies | None, submitted_s: float) -> None:
        self._rollout, self._replies, self._submitted_s = rollout, replies, submitted_s
        self._salt, self._deltas = "", None
        if replies is not None:
            self._salt = f"{rollout.seed}:{','.join(map(str, rollout.prompt_ids))}"
            self._deltas = Deltas(replies, rollout.prompt_ids, salt=self._salt)
        self._first_segment_s: float | None = None

    def complete(self, event: SegmentEvent) -> SegmentEvent:
        """Return an event with its parts of the message; the last one with the whole result."""
        rollout, result = self._rollout, event.result
        if self._first_segment_s is None and rollout.token_ids:
            self._first_segment_s = time.monotonic() - self._submitted_s
        if result is not None:
            result = self._completed(result)
            if isinstance(rollout.error, RequestError):
                rollout.error.result = result
        content = reasoning = None
        calls: tuple[ToolCallDelta, ...] = ()
        if self._deltas is not None:
            calls = self._deltas.calls(rollout.token_ids, rollout.emitted_text)
            if result is not None and result.message is not None:
                content, reasoning = self._deltas.end(result.message)
            else:
                content, reasoning = self._deltas.add(rollout.token_ids, rollout.emitted_text)
        return event.model_copy(
            update={
                "content": content,
                "reasoning": reasoning,
                "tool_calls": calls,
                "result": result,
            }
        )

    def _completed(self, result: StarsResult) -> StarsResult:
        """Return the result with the message and the times."""
        rollout, reason, message = self._rollout, result.finish_reason, None
        if self._replies is not None:
            text = rollout.text.removesuffix(rollout.fallback) if rollout.fallback else rollout.text
            message = self._replies.read(
                rollout.prompt_ids, rollout.token_ids, text, salt=self._salt
            )
            message = message.replace(content=message.content + rollout.fallback)
            if reason == "stop" and message.tool_calls:
                reason = "tool_calls"
        times = {
            "duration_s": time.monotonic() - self._submitted_s,
            "first_segment_s": self._first_segment_s,
        }
        usage = result.usage.model_copy(update=times)
        return result.model_copy(
            update={"message": message, "finish_reason": reason, "usage": usage}
        )
