"""`AutoSchedule`: thresholds calibrated when they are first needed, and kept."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from platformdirs import user_cache_path

from stars_engine.calibration.cache import read_or_make
from stars_engine.calibration.calibrate import (
    calibrate,
    check_settings,
    default_segment_len,
    pilot_end,
)
from stars_engine.calibration.fingerprints import stamps
from stars_engine.calibration.fit import Target
from stars_engine.calibration.host import Host
from stars_engine.calibration.pilot_prompts import neutral_prompts, speaks_chat
from stars_engine.calibration.settings import dependencies, hash_of
from stars_engine.calibration.single_flight import Job
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.schedules import AutoSchedule, CalibratedSchedule

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "STARS_CACHE_DIR"
_SHORTEST, _STEP = 32, 4  # lengths that are calibrated for: 32, 128, 512, ... tokens
_LAYOUT = 2  # of what a kept calibration means; raised when an older one would mislead


@dataclass(frozen=True, slots=True)
class Wish:
    """Thresholds that a call waits for.

    Attributes:
        align: The test, with its `AutoSchedule`.
        future: The thresholds; cancelling it is free at once, and ends a calibration that nobody
            else waits for.
    """

    align: AlignParams
    future: Future[CalibratedSchedule]

    def fulfilled(self) -> AlignParams:
        """Return the test with the thresholds, which are there, in the schedule's place."""
        # What the test sets itself holds, also where the calibration carries another value.
        own = {name: getattr(self.align, name) for name in ("segment_len", "max_attempts")}
        return self.align.replace(schedule=self.future.result(), **own)


class Calibrations:
    """The calibrations of one runtime: each is made once, whoever asks, and kept on disk.

    Those of objects in memory are kept as long as the runtime: no file can name their models.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._jobs: dict[str, Job] = {}
        self._known: dict[str, CalibratedSchedule] = {}

    def ask(
        self,
        engine: Host,
        align: AlignParams,
        sampling: SamplingParams,
        *,
        reward_key: str,
        portable: bool,
    ) -> Wish:
        """Have thresholds found in place of a test's `AutoSchedule`, with all who ask for the same.

        Waits for nothing once the models are loaded.

        Args:
            engine: The handle that asks.
            align: Its test.
            sampling: The proposal.
            reward_key: The reward model, within this runtime.
            portable: Whether names tell both models, so that a file may keep the result.

        Returns:
            What to wait for. Its future fails with `RequestError` if the reward failed on a pilot
            prompt.
        """
        auto = align.schedule
        assert isinstance(auto, AutoSchedule)
        settled = _with_segment_len(engine, align, auto)
        sampling = _for_all_lengths(engine, sampling)
        wanted = _wanted(engine, settled, sampling, auto)
        key = hash_of([wanted, reward_key])

        def work(host: Host, is_wanted: Callable[[], bool]) -> CalibratedSchedule:
            path = _path_of(host, wanted) if portable else None
            make = partial(_calibrate, host, settled, sampling, auto, path, is_wanted=is_wanted)
            return make() if path is None else read_or_make(path, make, is_wanted)

        with self._lock:
            if key in self._known:
                known: Future[CalibratedSchedule] = Future()
                known.set_result(self._known[key])
                return Wish(settled, known)
            job = self._jobs.get(key)
            waiter = None if job is None else job.join(engine)
            if waiter is None:
                job = self._jobs[key] = Job(work, partial(self._note, key))
                waiter = job.join(engine)
                assert waiter is not None
        return Wish(settled, waiter)

    def _note(self, key: str, job: Job, schedule: CalibratedSchedule | None) -> None:
        with self._lock:
            if schedule is not None:
                self._known[key] = schedule
            if self._jobs.get(key) is job:
                del self._jobs[key]


def calibrations_of(owner: object) -> Calibrations:
    """Return the calibrations that belong to a runtime, as long as it exists."""
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


def _for_all_lengths(engine: Host, sampling: SamplingParams) -> SamplingParams:
    """Return a proposal as long as the next of few lengths: thresholds for it serve shorter ones.

    So a server whose requests differ in `max_tokens` calibrates a handful of times at most. Which
    length it is depends on the request alone, not on what was calibrated before.
    """
    length = _SHORTEST
    while length < sampling.max_tokens:
        length *= _STEP
    limit = engine.model.context_len
    if limit is not None:
        length = max(sampling.max_tokens, min(length, limit))
    return sampling.replace(max_tokens=length, on_overflow="clamp")


def _wanted(
    engine: Host, align: AlignParams, sampling: SamplingParams, auto: AutoSchedule
) -> dict[str, Any]:
    """Return all that the result depends on, as plain values."""
    name, value = auto.target
    return {
        **dependencies(engine.config, align, sampling),
        "max_tokens": sampling.max_tokens,
        "on_exhausted": pilot_end(align),
        "target": [name, value],
        "relative_beta": auto.relative_beta,
        "prompts": hash_of(_pilot_prompts(engine, auto)),
        "seed": auto.seed,
        "layout": _LAYOUT,
    }


def _pilot_prompts(engine: Host, auto: AutoSchedule) -> Sequence[str]:
    count = auto.num_prompts
    if auto.prompts is not None:
        return auto.prompts[:count]
    return neutral_prompts(chat=speaks_chat(engine), seed=auto.seed)[:count]


def _calibrate(
    engine: Host,
    align: AlignParams,
    sampling: SamplingParams,
    auto: AutoSchedule,
    path: Path | None,
    *,
    is_wanted: Callable[[], bool],
) -> CalibratedSchedule:
    name, value = auto.target
    check_settings(Target(name, value), sampling, align)
    where = "as long as the engine is loaded" if path is None else f"in {path}"
    prompts = _pilot_prompts(engine, auto)
    logger.warning(
        "calibrating thresholds for %s=%s on %d pilot prompts; this is done once and kept %s",
        name,
        value,
        len(prompts),
        where,
    )
    schedule = calibrate(
        engine,
        prompts,
        **{name: value},  # type: ignore[arg-type]
        relative_beta=auto.relative_beta,
        align=align,
        sampling=sampling,
        seed=auto.seed,
        progress=lambda done, total: logger.info("calibration: stage %d of %d", done, total),
        should_stop=lambda: not is_wanted(),
    )
    if schedule.predicted is not None:
        logger.warning(
            "calibrated: segments of %d tokens, about %.1f drafted tokens for each kept one",
            schedule.segment_len,
            schedule.predicted.budget.value,
        )
        stopped = schedule.predicted.stopped
        if stopped is not None and stopped.value > 0:
            logger.warning(
                "about %.1f%% of answers will stop before a segment of which no draw is accepted",
                100 * stopped.value,
            )
    return schedule


def _path_of(engine: Host, wanted: dict[str, Any]) -> Path:
    folder = os.environ.get(CACHE_VARIABLE)
    root = Path(folder) if folder else user_cache_path("stars-engine", appauthor=False)
    return root / "calibrations" / f"{hash_of([wanted, stamps(engine.config)])}.yaml"
