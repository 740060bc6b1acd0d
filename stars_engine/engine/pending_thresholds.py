"""Wait for the thresholds of a request group whose schedules are still to be calibrated."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from stars_engine.calibration.auto import CalibrationRequest
from stars_engine.runtime.request_group import PromptRequest, RequestGroup
from stars_engine.schedules import AutoSchedule, CalibratedSchedule


class PendingThresholds:
    """The calibrations of a request group, as a context in which the caller waits for them.

    At the end of the context, each `AutoSchedule` is replaced by its thresholds, and the duration
    of the group starts. If a calibration fails or the caller stops waiting, all are cancelled.

    Args:
        group: The group.
        request: Requests the calibration of one prompt's settings.
    """

    def __init__(
        self, group: RequestGroup, request: Callable[[PromptRequest], CalibrationRequest]
    ) -> None:
        self._group = group
        self._calibrations: dict[tuple[int, int], CalibrationRequest] = {}
        for prompt in group.prompts:
            if isinstance(prompt.align.schedule, AutoSchedule) and (
                _settings_key(prompt) not in self._calibrations
            ):
                self._calibrations[_settings_key(prompt)] = request(prompt)

    @property
    def futures(self) -> list[Future[CalibratedSchedule]]:
        """The thresholds."""
        return [calibration.future for calibration in self._calibrations.values()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for future in self.futures:
                future.cancel()
            return
        found = {key: item.resolved_align() for key, item in self._calibrations.items()}
        self._group.prompts = tuple(
            dataclasses.replace(prompt, align=found.get(_settings_key(prompt), prompt.align))
            for prompt in self._group.prompts
        )
        self._group.submitted_s = time.monotonic()


def _settings_key(prompt: PromptRequest) -> tuple[int, int]:
    """Return a key for a pair of align and sampling; prompts of one call share the objects."""
    return id(prompt.align), id(prompt.sampling)
