"""Calibrations kept in files: one process makes each, while others wait for it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from stars_engine.disk import shown_path, why_not
from stars_engine.errors import CalibrationStoppedError, ConfigError
from stars_engine.schedules import CalibratedSchedule

logger = logging.getLogger(__name__)

LOOK_S = 0.25  # between two looks at whether the thresholds are still wanted
TELL_AFTER_S, TELL_EVERY_S = 5.0, 60.0  # of waiting for another process, until it is told


def read_or_make(
    path: Path, make: Callable[[], CalibratedSchedule], is_wanted: Callable[[], bool]
) -> CalibratedSchedule:
    """Read the kept calibration, or make it and keep it.

    Where the disk does not permit to keep it, it is used all the same, and a warning says why.

    Args:
        path: Its file.
        make: Makes it.
        is_wanted: Whether anybody waits for it.

    Raises:
        CalibrationStoppedError: Nobody waits any more, and another process is still at it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"), thread_local=False)
        _acquire(lock, path, is_wanted)
    except (OSError, NotImplementedError, ValueError) as error:  # some file systems have no locks
        known = _read(path)  # a cache that is only read may be a full one
        if known is None:
            reason = why_not(error) if isinstance(error, OSError | ValueError) else str(error)
            _warn(path, reason)
            known = make()
        return known
    with _held(lock, path):
        known = _read(path)
        if known is None:
            known = make()
            try:
                known.to_file(path)
            except ConfigError as error:  # the calibration is done, and is not lost for that
                _warn(path, str(error))
        return known


def _read(path: Path) -> CalibratedSchedule | None:
    if not os.path.lexists(path):  # which raises nothing, whatever the path
        return None
    try:
        return CalibratedSchedule.from_file(path)
    except ConfigError as error:
        logger.warning("a kept calibration is made anew: %s", error)
        return None


def _warn(path: Path, reason: str) -> None:
    logger.warning(
        "the calibration cannot be kept in %s, and is used as long as the engine is loaded: %s; "
        "or set STARS_CACHE_DIR to another directory",
        shown_path(path),
        reason,
    )


def _acquire(lock: FileLock, path: Path, is_wanted: Callable[[], bool]) -> None:
    """Wait for the lock, and say so: what holds it up is out of sight."""
    began_s = time.monotonic()
    tell_s = began_s + TELL_AFTER_S
    while True:
        try:
            lock.acquire(timeout=LOOK_S)
        except Timeout:
            if not is_wanted():
                raise CalibrationStoppedError(
                    f"nobody waits for the thresholds any more, which {_holder(path)} is making"
                ) from None
            if time.monotonic() >= tell_s:
                tell_s = time.monotonic() + TELL_EVERY_S
                logger.warning(
                    "waiting for %.0f s for %s, which calibrates the same thresholds and holds %s. "
                    "Cure, if it hangs: end it, and give its reward a timeout_s",
                    time.monotonic() - began_s,
                    _holder(path),
                    path.with_suffix(".lock"),
                )
        else:
            return


@contextmanager
def _held(lock: FileLock, path: Path) -> Iterator[None]:
    """Tell others who holds the lock; beside it, since waiting empties the lock's own file."""
    note = path.with_suffix(".pid")
    try:
        with suppress(OSError):
            note.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)
        lock.release()


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.with_suffix('.pid').read_text(encoding='utf-8'))}"
    except (OSError, ValueError):
        return "another process"
