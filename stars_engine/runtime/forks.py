"""Forked processes: what they inherit has lost its thread, and perhaps holds a lock for ever."""

from __future__ import annotations

import os

from stars_engine.errors import EngineForkedError


def check_process(pid: int) -> None:
    """Refuse what a fork inherited; to be asked before any lock is taken.

    Args:
        pid: The process in which it was made.

    Raises:
        EngineForkedError: This is another one.
    """
    if os.getpid() != pid:
        raise EngineForkedError(
            f"this engine belongs to process {pid}; its thread does not exist in the forked "
            f"process {os.getpid()}. Cure: make the engine in the child process, or start "
            "processes with the 'spawn' method"
        )
