"""A calibration in progress, kept in a file so that it can go on after an interruption."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from stars_engine.calibration.fit import Fitter, StageDrafts
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
            for file in (self._path, self._partial):
                check_writable(file, "checkpoint")
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
        except (OSError, ValueError, KeyError, TypeError) as error:
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
        """Keep the stages so far; a crash while writing leaves the file as it was."""
        if self._path is None:
            return
        stages = [stage.to_values() for stage in fitter.stages]
        self._partial.write_text(
            json.dumps({"settings": self._settings, "stages": stages}), encoding="utf-8"
        )
        self._partial.replace(self._path)

    @property
    def _partial(self) -> Path:
        assert self._path is not None
        return self._path.with_name(self._path.name + ".new")

    def discard(self) -> None:
        """The calibration has ended: the file is of no more use."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _changed(then: Any, now: dict[str, Any]) -> list[str]:
    """Name the models whose files or source are others."""
    known = then if isinstance(then, dict) else {}
    return [name for name in {**known, **now} if known.get(name) != now.get(name)]
