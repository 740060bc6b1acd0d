"""Load the models of a command, while it shows that it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stars_engine.cli.progress import Wait
from stars_engine.cli.threads import use_one_thread
from stars_engine.config import StarsConfig

if TYPE_CHECKING:
    from stars_engine.engine.engine import StarsEngine


@contextmanager
def loaded(config: StarsConfig) -> Iterator[tuple[StarsEngine, Wait]]:
    """Yield a loaded engine and what says that its user waits, which `Wait.end` ends.

    Rewards and directories are checked before anything is loaded. The engine is closed at the end,
    so that its thread ends with the command.
    """
    with Wait(f"loading {_names(config)}") as wait:
        from stars_engine.engine.engine import StarsEngine

        if config.uses_embedded_pair:
            use_one_thread()
        with StarsEngine(config) as engine:
            engine.load()
            yield engine, wait


def _names(config: StarsConfig) -> str:
    return f"{config.model.shown_name} and {config.reward.shown_name}"
