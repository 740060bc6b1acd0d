"""What two runs with one seed must have in common."""

from __future__ import annotations

import numpy as np

from stars_engine.types import StarsResult


class Close(list[float]):
    """Numbers that are equal up to rounding; digits cut off would differ at their borders."""

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, list)
        return len(self) == len(other) and np.allclose(self, other, rtol=0, atol=1e-4)

    __hash__ = None  # type: ignore[assignment]


def account(result: StarsResult) -> dict[str, object]:
    """Everything but speed: surplus drafts and seconds."""
    fast = {
        "num_surplus_tokens",
        "num_speculative_tokens",
        "num_surplus_rewards",
        "duration_s",
        "first_segment_s",
    }
    dump = result.model_dump(exclude={"usage": fast, "prompt_index": True})
    # Rounding differs with the shape of a batch; whatever is decided on it must not.
    return {
        "text": dump["text"],
        "token_ids": dump["token_ids"],
        "finish_reason": dump["finish_reason"],
        "usage": dump["usage"],
        "verdicts": [[a["verdict"] for a in s["attempts"]] for s in dump["segments"]],
        "rewards": Close(a["reward"] for s in dump["segments"] for a in s["attempts"]),
    }
