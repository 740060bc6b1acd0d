"""Checkpoints of a calibration, so that it can resume after an interruption."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from stars_engine.calibration.fit import Fitter, StageDrafts
from stars_engine.errors import ConfigError, Problem
from stars_engine.files.config_files import check_writable
from stars_engine.files.disk import shown_path, why_not, write_file

logger = logging.getLogger(__name__)


class StageCheckpoint:
    """A file with the finished stages of one calibration.

    Args:
        path: The file; None disables checkpoints.
        settings: All dependencies of the calibration; a file with other settings is not used.

    Raises:
        ConfigError: The file cannot be written.
    """

    def __init__(self, path: str | Path | None, settings: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        if self._path is not None:
            check_writable(self._path, "checkpoint")
        self._failed = False
        self._settings = json.loads(json.dumps(settings, default=str))

    def restore(self, fitter: Fitter, num_stages: int) -> None:
        """Fit the stored stages, which gives bit for bit the same thresholds as before.

        Args:
            fitter: Receives the stages.
            num_stages: Total number of stages, for the log.

        Raises:
            ConfigError: The file cannot be read.
        """
        if self._path is None or not self._path.is_file():
            return
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            settings = dict(values["settings"])
            stages = [StageDrafts.from_values(stage) for stage in values["stages"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{self._path} is not a checkpoint of a calibration: {error}. Hint: delete it"
            raise ConfigError("calibrate", [Problem("checkpoint", message)]) from None
        names = {**settings, **self._settings}
        others = [name for name in names if settings.get(name) != self._settings.get(name)]
        if others == ["fingerprints"]:
            logger.warning(
                "%s was written with other weights or code (%s); starting a new calibration",
                self._path,
                ", ".join(_changed(settings.get("fingerprints"), self._settings["fingerprints"])),
            )
            return
        if others:
            logger.warning(
                "Replacing %s, which belongs to another calibration (different %s)",
                self._path,
                ", ".join(others),
            )
            return
        for stage in stages:
            fitter.add(stage)
        logger.warning(  # a warning, so that a resumed calibration is not mistaken for a new one
            "Resuming the calibration after %d of %d stages from %s; delete the file to start over",
            len(stages),
            max(num_stages, len(stages)),
            self._path,
        )

    def save(self, fitter: Fitter) -> None:
        """Write the stages so far; a crash while writing leaves the old file intact.

        If they cannot be written, the calibration continues, with one warning.
        """
        if self._path is None:
            return
        stages = [stage.to_values() for stage in fitter.stages]
        data = json.dumps({"settings": self._settings, "stages": stages})
        try:
            write_file(self._path, data, "checkpoint")
        except ConfigError as error:
            if not self._failed:
                logger.warning("The calibration continues without checkpoints: %s", error)
            self._failed = True

    def discard(self) -> None:
        """Delete the file, because the calibration is complete."""
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning(
                    "The checkpoint %s is not needed any more and cannot be removed: %s",
                    shown_path(self._path),
                    why_not(error),
                )


def _changed(then: Any, now: dict[str, Any]) -> list[str]:
    """Return the names of models whose files or source have changed."""
    known = then if isinstance(then, dict) else {}
    return [name for name in {**known, **now} if known.get(name) != now.get(name)]
