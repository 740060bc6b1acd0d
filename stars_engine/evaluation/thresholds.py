"""Acceptance settings of arms: calibrated thresholds, and targets relative to plain answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from stars_engine.calibration.calibrate import MIN_PROMPTS, ProgressCallback, calibrate
from stars_engine.calibration.over_prompts import Floats
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.engine.engine import StarsEngine
from stars_engine.errors import ConfigError, Problem
from stars_engine.evaluation.arms import AnyArm, PlainArm, PlainTarget, RejectionArm, tilted
from stars_engine.evaluation.statistics import best_of
from stars_engine.evaluation.store import identity
from stars_engine.files.disk import write_file
from stars_engine.schedules import AutoSchedule, CalibratedSchedule

PlainRewards = Callable[[int], Floats]  # samples per prompt -> (prompts, samples)


class Thresholds:
    """Resolves the settings of arms, and stores calibrations.

    Args:
        directory: Where calibrations are stored.
        prompts: The tuning prompts.
        sampling: The proposal.
    """

    def __init__(self, directory: Path, prompts: Sequence[str], sampling: SamplingParams) -> None:
        self._directory, self._prompts, self._sampling = directory, prompts, sampling

    def resolve(
        self,
        arm: AnyArm,
        config: StarsConfig,
        engine: Callable[[], StarsEngine],
        key: str,
        plain_rewards: PlainRewards,
        *,
        progress: ProgressCallback | None = None,
    ) -> AlignParams:
        """Return settings whose schedule needs neither a calibration nor plain answers.

        Args:
            arm: The arm.
            config: The config of its models.
            engine: Returns their engine; called only to calibrate.
            key: Identifies the models; calibrations are stored under it.
            plain_rewards: Returns the guide's rewards of plain answers to the tuning prompts.
            progress: Called with the stages of a calibration done and in total.

        Raises:
            ConfigError: There are too few tuning prompts.
        """
        if isinstance(arm, RejectionArm):
            align: AlignParams | None = arm.align_for(self._sampling.max_tokens)
        else:
            align = arm.base_align
        align = config.with_thresholds(align)
        if isinstance(arm, PlainArm):
            own = config.align.alternatives if arm.alternatives is None else arm.alternatives
            align = align.replace(alternatives=own)
        target = arm.base_target
        if target is not None:
            value = self._value(target, plain_rewards)
            assert align.schedule is not None
            name = "target" if "target" in type(align.schedule).model_fields else "value"
            align = align.replace(schedule=align.schedule.replace(**{name: value}))
        if isinstance(align.schedule, AutoSchedule):
            align = self._calibrated(align, align.schedule, engine, key, progress)
        if arm.base_tilt:
            if not isinstance(align.schedule, CalibratedSchedule):
                message = "needs calibrated thresholds. Hint: use a schedule of kind auto"
                raise ConfigError("arm", [Problem("tilt", message)])
            align = align.replace(schedule=tilted(align.schedule, arm.base_tilt))
        return align.replace(keep_rejected_text=True)

    def _value(self, target: PlainTarget, plain_rewards: PlainRewards) -> float:
        self._check_prompts("target", 1)
        rewards = plain_rewards(max(4, target.best_of))
        spread = float(np.sqrt(rewards.var(axis=1, ddof=1).mean()))
        mean = float(best_of(target.best_of, rewards, rewards).mean())
        return round(mean + target.offset_sigmas * spread, 4)

    def _calibrated(
        self,
        align: AlignParams,
        auto: AutoSchedule,
        engine: Callable[[], StarsEngine],
        key: str,
        progress: ProgressCallback | None,
    ) -> AlignParams:
        prompts = self._prompts if auto.prompts is None else auto.prompts
        if auto.prompts is None:
            self._check_prompts("align.schedule", MIN_PROMPTS)
        about = [key, identity(align), identity(self._sampling), *prompts]
        digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=8).hexdigest()
        path = self._directory / f"thresholds-{digest}.json"
        if path.exists():
            schedule = CalibratedSchedule.model_validate(json.loads(path.read_text("utf-8")))
        else:
            name, value = auto.target
            schedule = calibrate(
                engine(),
                prompts[: auto.num_prompts],
                **{name: value},  # type: ignore[arg-type]
                segment_len=None if auto.segment_len == "auto" else auto.segment_len,
                relative_beta=auto.relative_beta,
                align=align,
                sampling=self._sampling,
                seed=auto.seed,
                progress=progress,
            )
            write_file(path, schedule.model_dump_json(indent=1) + "\n", "thresholds")
        own = {name: getattr(align, name) for name in ("max_attempts",)}
        return align.replace(schedule=schedule, **own)

    def _check_prompts(self, field: str, least: int) -> None:
        if len(self._prompts) < least:
            message = (
                f"needs at least {least} tuning prompts; there are {len(self._prompts)}. Hint: "
                "raise prompts.tuning"
            )
            raise ConfigError("arm", [Problem(field, message)])
