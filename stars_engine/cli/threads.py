"""The number of torch threads for the embedded pair."""

from __future__ import annotations

from stars_engine.errors import needs_extra


def use_one_thread() -> None:
    """Use one torch thread: small matrices gain nothing from more, and may wait for them."""
    with needs_extra("local"):
        import torch
    torch.set_num_threads(1)
