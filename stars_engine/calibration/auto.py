"""`AutoSchedule`: thresholds that are calibrated when first needed, and cached."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

from stars_engine.calibration.cache import CalibrationCache
from stars_engine.calibration.calibrate import (
    calibrate,
    check_settings,
    default_segment_len,
    pilot_on_exhausted,
)
from stars_engine.calibration.fingerprints import model_fingerprints
from stars_engine.calibration.fit import Target
from stars_engine.calibration.host import Host
from stars_engine.calibration.pilot_prompts import neutral_prompts, uses_chat_format
from stars_engine.calibration.prefix_trust import warn_of_trust
from stars_engine.calibration.settings import dependencies, hash_of
from stars_engine.calibration.single_flight import SingleFlightJob
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.schedules import AutoSchedule, CalibratedSchedule

logger = logging.getLogger(__name__)

_MIN_LENGTH, _LENGTH_FACTOR = 32, 4  # calibrated lengths are 32, 128, 512, ... tokens
LOG_EVERY_S = 10.0
_LAYOUT = 3  # version of cached calibrations; raised when older ones must not be used


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """A request for calibrated thresholds.

    Attributes:
        align: The acceptance settings, with their `AutoSchedule`.
        future: The thresholds. Cancelling it returns at once, and stops the calibration if no
            other request waits for it.
    """

    align: AlignParams
    future: Future[CalibratedSchedule]

    def resolved_align(self) -> AlignParams:
        """Return the settings with the thresholds, which must be known, as their schedule."""
        # The caller's own settings take precedence over those that the calibration carries.
        own = {name: getattr(self.align, name) for name in ("segment_len", "max_attempts")}
        schedule = self.future.result()
        if "guard" in schedule.made_for and "on_exhausted" not in self.align.model_fields_set:
            own["on_exhausted"] = "stop"  # text that is not allowed must not be kept
        return self.align.replace(schedule=schedule, **own)


class Calibrations:
    """The calibrations of one runtime: each runs once for all requests, and is cached on disk.

    Calibrations of models in memory are cached for the lifetime of the runtime, because a file
    cannot identify such models.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._jobs: dict[str, SingleFlightJob] = {}
        self._results: dict[str, CalibratedSchedule] = {}

    def request(
        self,
        engine: Host,
        align: AlignParams,
        sampling: SamplingParams,
        *,
        reward_key: str,
        portable: bool,
    ) -> CalibrationRequest:
        """Request thresholds for an `AutoSchedule`; equal requests share one calibration.

        Does not block once the models are loaded.

        Args:
            engine: The handle that requests them.
            align: The acceptance settings.
            sampling: The proposal.
            reward_key: Key of the reward model in this runtime.
            portable: Whether names identify both models, so that the result can be cached on disk.

        Returns:
            The request. Its future fails with `RequestError` if the reward model fails on a pilot
            prompt.
        """
        auto = align.schedule
        assert isinstance(auto, AutoSchedule)
        resolved = _with_segment_len(engine, align, auto)
        sampling = _with_rounded_length(engine, sampling)
        key_values = _cache_key_values(engine, resolved, sampling, auto)
        key = hash_of([key_values, reward_key])

        def work(host: Host, is_wanted: Callable[[], bool]) -> CalibratedSchedule:
            make = partial(_calibrate, host, resolved, sampling, auto, is_wanted=is_wanted)
            if not portable:
                return make(kept="; they are kept while the engine is loaded")
            file_key = hash_of([key_values, model_fingerprints(host.config)])
            return CalibrationCache().load_or_create(file_key, make, is_wanted)

        with self._lock:
            if key in self._results:
                future: Future[CalibratedSchedule] = Future()
                future.set_result(self._results[key])
                return CalibrationRequest(resolved, future)
            job = self._jobs.get(key)
            waiter = None if job is None else job.join(engine)
            if waiter is None:
                job = self._jobs[key] = SingleFlightJob(work, partial(self._on_done, key))
                waiter = job.join(engine)
                assert waiter is not None
        return CalibrationRequest(resolved, waiter)

    def _on_done(self, key: str, job: SingleFlightJob, schedule: CalibratedSchedule | None) -> None:
        if schedule is not None:
            warn_of_trust(schedule)
        with self._lock:
            if schedule is not None:
                self._results[key] = schedule
            if self._jobs.get(key) is job:
                del self._jobs[key]


def calibrations_of(owner: object) -> Calibrations:
    """Return the calibrations of a runtime, which live as long as it does."""
    with _owners_lock:
        return _owners.setdefault(owner, Calibrations())


_owners_lock = Lock()
_owners: weakref.WeakKeyDictionary[object, Calibrations] = weakref.WeakKeyDictionary()


def _with_segment_len(engine: Host, align: AlignParams, auto: AutoSchedule) -> AlignParams:
    if auto.segment_len != "auto":
        return align.replace(segment_len=auto.segment_len)
    if "segment_len" in align.model_fields_set:
        return align
    return align.replace(segment_len=default_segment_len(engine.reward, align))


def _with_rounded_length(engine: Host, sampling: SamplingParams) -> SamplingParams:
    """Round `max_tokens` up to one of a few lengths, whose thresholds also fit shorter answers.

    A server whose requests differ in `max_tokens` thus calibrates only a few times. The length
    depends on the request alone, not on earlier calibrations.
    """
    length = _MIN_LENGTH
    while length < sampling.max_tokens:
        length *= _LENGTH_FACTOR
    limit = engine.model.context_len
    if limit is not None:
        length = max(sampling.max_tokens, min(length, limit))
    return sampling.replace(max_tokens=length, on_overflow="clamp")


def _cache_key_values(
    engine: Host, align: AlignParams, sampling: SamplingParams, auto: AutoSchedule
) -> dict[str, Any]:
    """Return all dependencies of the result, as plain values."""
    name, value = auto.target
    return {
        **dependencies(engine.config, align, sampling),
        "max_tokens": sampling.max_tokens,
        "on_exhausted": pilot_on_exhausted(align),
        "target": [name, value],
        "relative_beta": auto.relative_beta,
        "prompts": hash_of(_pilot_prompts(engine, auto)),
        "seed": auto.seed,
        "on_untrusted": auto.on_untrusted,
        "layout": _LAYOUT,
    }


def _pilot_prompts(engine: Host, auto: AutoSchedule) -> Sequence[str]:
    count = auto.num_prompts
    if auto.prompts is not None:
        return auto.prompts[:count]
    return neutral_prompts(chat=uses_chat_format(engine), seed=auto.seed)[:count]


class _StageLog:
    """Logs the stages of a calibration with the time left, at most every ten seconds."""

    def __init__(self) -> None:
        self._began_s = self._logged_s = time.monotonic()
        self._done = 0
        self._total: int | None = None  # known when the first stage is done

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        left_s = (time.monotonic() - self._began_s) / done * (total - done)
        level = logging.WARNING if done < total and self._is_due() else logging.INFO
        logger.log(
            level, "Calibration: stage %d of %d is done, about %.0f s left", done, total, left_s
        )

    def within(self, done: int, total: int) -> None:
        """Log how many prompts of the running stage have all their drafts."""
        if self._is_due():
            stages = "" if self._total is None else f" of {self._total}"
            stage = f"{self._done + 1}{stages}"
            logger.warning("Calibration: stage %s, %d of %d prompts", stage, done, total)

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        is_due = now_s - self._logged_s >= LOG_EVERY_S
        self._logged_s = now_s if is_due else self._logged_s
        return is_due


def _calibrate(
    engine: Host,
    align: AlignParams,
    sampling: SamplingParams,
    auto: AutoSchedule,
    *,
    is_wanted: Callable[[], bool],
    kept: str = "",
) -> CalibratedSchedule:
    name, value = auto.target
    check_settings(Target(name, value), sampling, align)
    prompts = _pilot_prompts(engine, auto)
    logger.warning(
        "Calibrating thresholds for %s=%s on %d pilot prompts%s", name, value, len(prompts), kept
    )
    stages = _StageLog()
    schedule = calibrate(
        engine,
        prompts,
        **{name: value},  # type: ignore[arg-type]
        relative_beta=auto.relative_beta,
        align=align,
        sampling=sampling,
        seed=auto.seed,
        progress=stages,
        stage_progress=stages.within,
        should_stop=lambda: not is_wanted(),
        detect_guard=True,
        on_untrusted=auto.on_untrusted,
    )
    if schedule.predicted is not None:
        logger.warning(
            "Calibrated: segments of %d tokens, about %.1f drafted tokens per kept token",
            schedule.segment_len,
            schedule.predicted.budget.value,
        )
        stopped = schedule.predicted.stopped
        if stopped is not None and stopped.value > 0:
            logger.warning(
                "About %.1f%% of answers will stop before a segment without an accepted draw",
                100 * stopped.value,
            )
    return schedule
