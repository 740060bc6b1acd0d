"""Features of an answer's tokens, which a draft carries for rewards that asked for them.

One array for each probe, `(1 + tokens, features)`: its first row belongs to the last token of the
prompt, the others to the tokens of the answer. Of a draft, the first row belongs to the last token
of its prefix. They live with the rollout, so preemption loses none, and a rejected candidate takes
its own with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Features = Mapping[Any, Any]  # by probe


def extended(before: Features, draft: Features, *, num_before: int, num_new: int) -> Features:
    """Return the features of an answer that continues with the first tokens of a draft.

    Features that are not known from the first token of the answer on are left out.

    Args:
        before: Features of the answer so far.
        draft: Features of the draft.
        num_before: Tokens of the answer so far.
        num_new: Tokens of the draft that continue it.
    """
    found = {}
    for probe, rows in draft.items():
        if num_before == 0:
            found[probe] = rows[: 1 + num_new]
        elif probe in before:
            found[probe] = np.concatenate([before[probe], rows[1 : 1 + num_new]])
    return found
