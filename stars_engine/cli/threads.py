"""How many processor threads torch uses for the embedded pair."""

from __future__ import annotations

from stars_engine.errors import needs_extra


def use_one_thread() -> None:
    """Matrices this small gain nothing from a second thread, and wait for it on a busy machine."""
    with needs_extra("local"):
        import torch
    torch.set_num_threads(1)
