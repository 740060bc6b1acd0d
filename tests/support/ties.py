"""Compare greedy texts of two implementations in float32, which round differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

NEAR = 0.02  # logits within this are a tie of two implementations in float32


def assert_equal_up_to_a_tie(
    model: Any, prompt_ids: Sequence[int], ours: Sequence[int], theirs: Sequence[int]
) -> None:
    """Check that the first tokens that differ, if any, are about equally likely.

    Args:
        model: The transformers model of `theirs`.
    """
    at = next((i for i, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y), None)
    if at is None:
        assert len(ours) == len(theirs)
        return
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *theirs[:at]]])).logits[0, -1]
    assert abs(logits[ours[at]] - logits[theirs[at]]) < NEAR, (at, ours, theirs)
