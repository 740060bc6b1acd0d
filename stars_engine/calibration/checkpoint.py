"""A calibration in progress, kept in a file so that it can go on after an interruption."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from stars_engine.calibration.fit import Fitter, StageDrafts
from stars_engine.disk import shown_path, why_not, write_file
from stars_engine.errors import ConfigError, Problem
from stars_engine.files import check_writable

logger = logging.getLogger(__name__)


class SavedStages:
    """Finished stages of one calibration.

    Args:
        path: The file; None keeps nothing.
        settings: Everything the calibration depends on; a file of another one is not used.

    Raises:
        ConfigError: The file could not be written.
    """

    def __init__(self, path: str | Path | None, settings: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        if self._path is not None:
            check_writable(self._path, "checkpoint")
        self._failed = False
        self._settings = json.loads(json.dumps(settings, default=str))

    def restore(self, fitter: Fitter, num_stages: int) -> None:
        """Fit the stages that are kept, which gives bit for bit what they gave before.

        Args:
            fitter: Takes them.
            num_stages: How many there will be, for the message.

        Raises:
            ConfigError: The file cannot be read.
        """
        if self._path is None or not self._path.exists():
            return
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            settings = dict(values["settings"])
            stages = [StageDrafts.from_values(stage) for stage in values["stages"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{self._path} is no checkpoint of a calibration: {error}; delete it"
            raise ConfigError("calibrate", [Problem("checkpoint", message)]) from None
        names = {**settings, **self._settings}
        others = [name for name in names if settings.get(name) != self._settings.get(name)]
        if others == ["stamps"]:
            logger.warning(
                "%s was begun with other weights or code (%s): the calibration starts afresh",
                self._path,
                ", ".join(_changed(settings.get("stamps"), self._settings["stamps"])),
            )
            return
        if others:
            logger.warning(
                "%s belongs to another calibration (other %s) and is replaced",
                self._path,
                ", ".join(others),
            )
            return
        for stage in stages:
            fitter.add(stage)
        logger.warning(  # one that nobody asked for would pass for a fresh one
            "the calibration goes on after %d of %d stages, which %s has kept; delete it to begin "
            "afresh",
            len(stages),
            max(num_stages, len(stages)),
            self._path,
        )

    def save(self, fitter: Fitter) -> None:
        """Keep the stages so far; a crash while writing leaves the file as it was.

        The calibration goes on where they cannot be kept; a warning says so once.
        """
        if self._path is None:
            return
        stages = [stage.to_values() for stage in fitter.stages]
        data = json.dumps({"settings": self._settings, "stages": stages})
        try:
            write_file(self._path, data, "checkpoint")
        except ConfigError as error:
            if not self._failed:
                logger.warning("the calibration goes on without keeping its stages: %s", error)
            self._failed = True

    def discard(self) -> None:
        """The calibration has ended: the file is of no more use."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning(
                    "%s is of no more use and cannot be removed: %s",
                    shown_path(self._path),
                    why_not(error),
                )


def _changed(then: Any, now: dict[str, Any]) -> list[str]:
    """Name the models whose files or source are others."""
    known = then if isinstance(then, dict) else {}
    return [name for name in {**known, **now} if known.get(name) != now.get(name)]
