"""Wait for several futures as for one."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any


def all_done(futures: Sequence[Future[Any]]) -> Future[Any] | None:
    """Return a future that is done when all of them are, whatever they end with; None for none."""
    if len(futures) <= 1:
        return next(iter(futures), None)
    together: Future[None] = Future()
    num_done = count(1)

    def note(_: Future[Any]) -> None:
        if next(num_done) == len(futures):
            together.set_result(None)

    for future in futures:
        future.add_done_callback(note)
    return together
