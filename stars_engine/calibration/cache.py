"""The calibration cache on disk, which processes share."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from stars_engine.errors import CalibrationStoppedError, ConfigError
from stars_engine.files.disk import check_home, shown_path, why_not
from stars_engine.schedules import CalibratedSchedule

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "STARS_CACHE_DIR"
POLL_S = 0.25  # between two checks whether the thresholds are still wanted
WARN_AFTER_S, WARN_EVERY_S = 5.0, 60.0  # of waiting for another process


def cache_folder() -> Path:
    """Return the folder of cached calibrations: in `STARS_CACHE_DIR`, or in the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    root = user_cache_path("stars-engine", appauthor=False)
    if chosen:
        root = Path(os.path.expanduser(chosen))  # noqa: PTH111 - Path may raise
    return root / "calibrations"


def described_cache() -> str:
    """Return where calibrations are cached, or that nothing can be written there."""
    folder = cache_folder()
    with suppress(OSError):
        check_home(folder)
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
            return f"cached in {shown_path(folder)}"
    return (
        f"not cached: nothing can be written to {shown_path(folder)}. Hint: set {CACHE_VARIABLE} "
        "to another directory"
    )


class CalibrationCache:
    """Calibrations on disk, one file for each key; one process calibrates while others wait for it.

    Args:
        folder: The folder of the files. None: the folder `calibrations` in `STARS_CACHE_DIR`, or in
            the user's cache.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = cache_folder() if folder is None else folder

    def path_of(self, key: str) -> Path:
        """Return the file of a calibration."""
        return self._folder / f"{key}.yaml"

    def load_or_create(
        self, key: str, make: Callable[[], CalibratedSchedule], is_wanted: Callable[[], bool]
    ) -> CalibratedSchedule:
        """Load a cached calibration, or create and cache it.

        A new one is returned even if it cannot be written to disk. The log says where it is
        cached, or why it is not.

        Args:
            key: Changes whenever the result would.
            make: Runs the calibration.
            is_wanted: Whether any request waits for it.

        Raises:
            CalibrationStoppedError: No request waits any more, while another process calibrates.
        """
        path = self.path_of(key)
        try:
            check_home(path)
            if _is_pipe(path):
                raise OSError(errno.EEXIST, "A pipe or a device is in its place")  # noqa: TRY301
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(".lock"), thread_local=False)
            _acquire(lock, path, is_wanted)
        except (OSError, NotImplementedError, ValueError) as error:  # no locks on some file systems
            known, _ = _read(path)  # a read-only cache may hold the calibration
            if known is None:
                reason = why_not(error) if isinstance(error, OSError | ValueError) else str(error)
                _warn(path, reason)
                known = make()
            return known
        with _held(lock, path):
            known, problem = _read(path)
            if known is None:
                known = make()
                try:
                    known.to_file(path)
                except ConfigError as error:  # a failed write must not lose the calibration
                    _warn(path, str(error))
                else:
                    if problem is not None:
                        logger.warning("Replaced an invalid cached calibration: %s", problem)
                    else:
                        logger.warning("The calibration is cached in %s", shown_path(path))
            return known


def _read(path: Path) -> tuple[CalibratedSchedule | None, ConfigError | None]:
    """Return the cached calibration, or why it is invalid; nothing if there is none."""
    if not os.path.lexists(path) or _is_pipe(path):  # do not raise, whatever the path
        return None, None
    try:
        return CalibratedSchedule.from_file(path), None
    except ConfigError as error:
        return None, error


def _is_pipe(path: Path) -> bool:
    """Whether there is a pipe or a device, which may block whoever opens it."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))  # noqa: PTH110, PTH112, PTH113


def _warn(path: Path, reason: str) -> None:
    logger.warning(
        "The calibration cannot be cached in %s and is used only while the engine is loaded: %s; "
        "or set %s to another directory",
        shown_path(path),
        reason,
        CACHE_VARIABLE,
    )


def _acquire(lock: FileLock, path: Path, is_wanted: Callable[[], bool]) -> None:
    """Wait for the lock; log a warning, because its holder is another process."""
    began_s = time.monotonic()
    warn_at_s = began_s + WARN_AFTER_S
    while True:
        try:
            lock.acquire(timeout=POLL_S)
        except Timeout:
            if not is_wanted():
                raise CalibrationStoppedError(
                    f"no request waits for the thresholds that {_holder(path)} is calibrating"
                ) from None
            if time.monotonic() >= warn_at_s:
                warn_at_s = time.monotonic() + WARN_EVERY_S
                logger.warning(
                    "Have waited %.0f s for %s, which is calibrating the same thresholds (lock: "
                    "%s). Hint: if it hangs, stop that process, and set timeout_s on its reward",
                    time.monotonic() - began_s,
                    _holder(path),
                    path.with_suffix(".lock"),
                )
        else:
            return


@contextmanager
def _held(lock: FileLock, path: Path) -> Iterator[None]:
    """Write the holder's process id next to the lock file, which waiting processes truncate."""
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
