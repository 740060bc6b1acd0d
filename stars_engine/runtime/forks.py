"""Detect forked processes: inherited engines have no thread, and may hold locked locks."""

from __future__ import annotations

import os

from stars_engine.errors import EngineForkedError


def check_process(pid: int) -> None:
    """Refuse an object that a fork inherited; call this before taking a lock.

    Args:
        pid: The process that created the object.

    Raises:
        EngineForkedError: The current process is another one.
    """
    if os.getpid() != pid:
        raise EngineForkedError(
            f"this engine belongs to process {pid}; its thread does not exist in the forked "
            f"process {os.getpid()}. Hint: create the engine in the child process, or start "
            "processes with the 'spawn' method"
        )
