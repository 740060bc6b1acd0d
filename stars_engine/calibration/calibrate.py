"""Calibration: from pilot answers to a `CalibratedSchedule`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from stars_engine.calibration.checkpoint import StageCheckpoint
from stars_engine.calibration.effort import effort_curve, pilot_effort
from stars_engine.calibration.fingerprints import model_fingerprints
from stars_engine.calibration.fit import Fitter, Target
from stars_engine.calibration.guards import guard_schedule, guard_values, in_words
from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.calibration.pilot import Pilot, schedule_of
from stars_engine.calibration.pilot_checks import warn_of_pilot
from stars_engine.calibration.pilot_prompts import (
    checked_prompts,
    neutral_prompts,
    uses_chat_format,
)
from stars_engine.calibration.prefix_trust import prefix_trust
from stars_engine.calibration.settings import dependencies, hash_of
from stars_engine.calibration.weight_hashes import weight_hashes
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.errors import CalibrationStoppedError, ConfigError, Problem
from stars_engine.schedules import CalibratedSchedule
from stars_engine.schedules.auto import DEFAULT_BUDGET
from stars_engine.schedules.calibrated import OnUntrusted
from stars_engine.types import Prompt, StarsResult

logger = logging.getLogger(__name__)

MIN_PROMPTS, DEFAULT_PROMPTS = 8, 96
_DRAFTS_PER_STAGE = 640  # fewer gave acceptances of 0.21 to 0.51 for a target of 0.3
_SHARING_LEN, _FOREIGN_LEN = 8, 16

ProgressCallback = Callable[[int, int], None]  # done, in total


def calibrate(
    engine: Host,
    prompts: Sequence[Prompt] | None = None,
    *,
    budget: float | None = None,
    target_acceptance: float | None = None,
    target_forced: float | None = None,
    segment_len: int | None = None,
    relative_beta: float | None = None,
    align: AlignParams | None = None,
    sampling: SamplingParams | None = None,
    reward_prompt: RewardPrompts = None,
    num_drafts: int | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    stage_progress: ProgressCallback | None = None,
    checkpoint: str | Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    detect_guard: bool = False,
    on_untrusted: OnUntrusted | Literal["ignore"] = "ignore",
    limit_draws: bool = False,
) -> CalibratedSchedule:
    """Find thresholds for an engine's models.

    There is one stage per segment. Each stage regresses the rewards of drafts on the rewards of
    their prefixes, and sets the threshold relative to that baseline so that the target is met. Its
    prefixes are those that the thresholds of earlier stages accepted. The same arguments give the
    same result.

    Args:
        engine: The `StarsEngine` to calibrate.
        prompts: Pilot prompts, at least 8 and preferably 100 or more, similar to those of later
            use; None: a neutral set from the package.
        budget: Target: drafted tokens over kept tokens, above 1 and below `max_attempts`. The
            default target is a budget of 2.7.
        target_acceptance: Target: acceptance probability of a segment's first draft, in (0, 1).
        target_forced: Target: share of segments kept without acceptance, in (0, 1).
        segment_len: Tokens judged together; None: the value set in `align` or the engine's config,
            else 8 for a reward model that reads the language model's token ids, else 16.
        relative_beta: Acceptance softness over the standard deviation of drafts' rewards; None:
            `align.beta`, which is in reward units.
        align: The acceptance settings; their schedule is ignored. None: the engine's.
        sampling: The proposal. Its `max_tokens` sets the number of stages, which cover whole
            segments. Shorter answers use the same thresholds. None: the engine's.
        reward_prompt: Replaces each prompt for the reward model.
        num_drafts: Drafts per prefix, up to `max_attempts`; None: 640 per stage in total, at least
            4 per prefix.
        seed: Seed of the pilot.
        progress: Called with the number of stages done and in total. Its errors are logged.
        stage_progress: Called while a stage runs, on another thread, with the number of prompts
            that have all their drafts and of all prompts in the stage. Its errors are logged.
        checkpoint: A file that stores finished stages. An interrupted calibration resumes from it
            and logs that it does, unless weight files or the source of a function have changed.
            Stored stages are restored bit for bit. Later stages are equal up to float32 rounding,
            because prefixes are drafted again in smaller batches.
        should_stop: Called before each stage; if it returns true, the calibration ends.
        detect_guard: End after the first stage if the reward takes at most three values there, and
            return thresholds that accept the highest value alone.
        on_untrusted: What calls with these thresholds do if the reward of unfinished text says too
            little of the whole answer: "warn", "best_of_n" (sample whole answers for the same
            budget, and return the best) or "raise". "ignore" does not measure it, which saves a
            third of a stage for each segment.
        limit_draws: Give fewer draws to prefixes after which late draws are seldom accepted,
            if that saves a tenth of the draws after the first. More segments are forced. No effect
            with `target_forced`, or if answers end where draws run out.

    Raises:
        ConfigError: An argument is out of range, or `checkpoint` cannot be written.
        RequestError: The reward model failed on a pilot prompt.
        CalibrationStoppedError: `should_stop` returned true.
    """
    target = _target(budget, target_acceptance, target_forced)
    sampling = (engine.sampling if sampling is None else sampling).replace(seed=seed, n=1)
    align = _pilot_align(engine, align, segment_len, relative_beta)
    check_settings(target, sampling, align)
    if prompts is None:
        prompts = neutral_prompts(chat=uses_chat_format(engine), seed=seed)[:DEFAULT_PROMPTS]
    prompts = checked_prompts("calibrate", prompts, least=MIN_PROMPTS)
    num_drafts = _num_drafts(num_drafts, len(prompts), align.max_attempts)

    fitter = Fitter(
        target,
        max_attempts=align.max_attempts,
        beta=align.beta if relative_beta is None else None,
        stops=align.on_exhausted == "stop",
        limits_draws=limit_draws,
        relative_beta=relative_beta or 0.0,
    )
    made_for = dependencies(engine.config, align, sampling)
    sampling = _with_whole_segments(sampling, align)
    pilot = {
        "target": {target.name: target.value},
        "relative_beta": relative_beta,
        "max_tokens": sampling.max_tokens,
        "prompts": hash_of([_as_text(prompt) for prompt in prompts]),
        "num_prompts": len(prompts),
        "num_drafts": num_drafts,
        "on_exhausted": align.on_exhausted,
        "seed": seed,
        **({"limit_draws": True} if limit_draws else {}),
    }
    num_stages = math.ceil(sampling.max_tokens / align.segment_len)
    fingerprints = {} if checkpoint is None else model_fingerprints(engine.config)
    settings = {**made_for, "pilot": pilot, "fingerprints": fingerprints}
    stage_checkpoint = StageCheckpoint(checkpoint, settings)
    stage_checkpoint.restore(fitter, num_stages)

    guard: list[float] = []
    report = _logging_errors(progress)

    def stage_done() -> None:
        if detect_guard and len(fitter.stages) == 1:
            guard[:] = guard_values(fitter.stages[0]) or []
        try:
            stage_checkpoint.save(fitter)
        except Exception:
            logger.exception("Saving a finished stage failed")
        report(len(fitter.lines), max(num_stages, len(fitter.lines)))

    pilot_run = Pilot(
        engine,
        fitter,
        num_drafts=num_drafts,
        on_stage=stage_done,
        on_prompt=_logging_errors(stage_progress),
        should_stop=lambda: bool(guard) or should_stop(),
    )
    run = partial(
        pilot_run.run, prompts, sampling=sampling, align=align, reward_prompt=reward_prompt
    )
    results = _unless_guard(run, guard)
    if results is None:
        stage_checkpoint.discard()
        return guard_schedule(guard, align, {**made_for, "pilot": pilot})
    assert fitter.beta is not None
    made_for["align"]["beta"] = fitter.beta
    schedule = schedule_of(
        fitter,
        len(fitter.lines) - 1,
        segment_len=align.segment_len,
        made_for={**made_for, "weights": weight_hashes(engine.config), "pilot": pilot},
        predicted=pilot_effort(fitter, results),
        curve=effort_curve(fitter),
    )
    if on_untrusted != "ignore" and not should_stop():
        trust = prefix_trust(
            engine,
            prompts,
            sampling=sampling,
            align=align,
            reward_prompt=reward_prompt,
            seed=seed,
        )
        schedule = schedule.replace(trust=trust, on_untrusted=on_untrusted)
    warn_of_pilot(schedule, results)
    stage_checkpoint.discard()
    return schedule


def _logging_errors(progress: ProgressCallback | None) -> ProgressCallback:
    """Return a callback whose errors are logged; for None, one that does nothing."""

    def report(done: int, total: int) -> None:
        try:
            if progress is not None:
                progress(done, total)
        except Exception:
            logger.exception("Reporting the progress of a calibration failed")

    return report


def _num_drafts(given: int | None, num_prompts: int, max_attempts: int) -> int:
    if given is None:
        return min(max(4, math.ceil(_DRAFTS_PER_STAGE / num_prompts)), max_attempts)
    if not 2 <= given <= max_attempts:
        raise _problem("num_drafts", given, f"from 2 to max_attempts={max_attempts}")
    return given


def _unless_guard(
    run: Callable[[], list[StarsResult]], guard: Sequence[float]
) -> list[StarsResult] | None:
    """Run the pilot; return None if it ended because the reward is a guard."""
    try:
        results = run()
    except CalibrationStoppedError:
        if not guard:
            raise
    else:
        if not guard:
            return results
    logger.warning(
        "The reward takes only the values %s in the pilot: it is used as a guard that accepts "
        "the highest of them. Hint: declare it with AlignParams(preset='guard')",
        in_words(guard),
    )
    return None


def default_segment_len(reward: Any, align: AlignParams) -> int:
    """Return the default segment length.

    Short segments align best, but need more reward calls. A reward model that reads the language
    model's token ids reads only the new ones in each call; others read the whole text.
    """
    usual = _SHARING_LEN if getattr(reward, "reads_ids", False) else _FOREIGN_LEN
    return max(usual, align.min_segment_len or 0)


def _pilot_align(
    engine: Host, align: AlignParams | None, segment_len: int | None, relative_beta: float | None
) -> AlignParams:
    """Return the acceptance settings of the pilot.

    A pilot answer stops where the real one would raise or end with a fallback; the cost is equal.
    """
    base = engine.config.align if align is None else align
    old = base.schedule  # settings that it brings would go with it
    brought = old.carried if isinstance(old, CalibratedSchedule) else {}
    changes: dict[str, Any] = {
        **{name: getattr(base, name) for name in brought},
        "schedule": None,
        "on_exhausted": pilot_on_exhausted(base),
        "fallback_text": None,
        "terminal": "schedule",
        "deadline_s": None,
        "max_drafted_tokens": None,
    }
    if segment_len is not None:
        if segment_len < 1:
            raise _problem("segment_len", segment_len, "1 or more")
        changes["segment_len"] = segment_len
    elif "segment_len" not in base.model_fields_set:
        changes["segment_len"] = default_segment_len(engine.reward, base)
    if relative_beta is not None and not 0 <= relative_beta < math.inf:
        raise _problem("relative_beta", relative_beta, "0 or more")
    return base.replace(**changes)


def pilot_on_exhausted(align: AlignParams) -> str:
    """Return `on_exhausted` for the pilot: "stop" in place of "raise" and "fallback"."""
    return align.on_exhausted if align.on_exhausted in ("best", "last") else "stop"


def _with_whole_segments(sampling: SamplingParams, align: AlignParams) -> SamplingParams:
    """Drop a last segment that `max_tokens` cuts short, since longer answers continue it."""
    rest = sampling.max_tokens % align.segment_len
    if align.segment_end != "length" or sampling.max_tokens < align.segment_len or not rest:
        return sampling
    length = sampling.max_tokens - rest
    return sampling.replace(max_tokens=length, min_tokens=min(sampling.min_tokens, length))


def _target(
    budget: float | None, target_acceptance: float | None, target_forced: float | None
) -> Target:
    given = {
        "budget": budget,
        "target_acceptance": target_acceptance,
        "target_forced": target_forced,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return Target("budget", DEFAULT_BUDGET)
    if len(chosen) > 1:
        names = " and ".join(chosen)
        raise ConfigError(
            "calibrate", [Problem(names, "are both targets. Hint: set only one of them")]
        )
    [(name, value)] = chosen.items()
    if name == "budget" and not value > 1:
        raise _problem(name, value, "a number above 1 (drafted tokens over kept tokens)")
    if name != "budget" and not 0 < value < 1:
        raise _problem(name, value, "a number between 0 and 1")
    return Target(name, float(value))


def check_settings(target: Target, sampling: SamplingParams, align: AlignParams) -> None:
    """Check settings that need neither models nor prompts.

    Raises:
        ConfigError: Thresholds cannot be calibrated with these settings.
    """
    if target.name == "budget" and target.value >= align.max_attempts:
        raise _problem(
            "budget", target.value, f"above 1 and below max_attempts={align.max_attempts}"
        )
    if sampling.temperature == 0:
        raise _problem(
            "temperature",
            0,
            "above 0, because at 0 all draws of a segment are equal",
            hint="raise temperature, or set thresholds yourself with ConstantSchedule(value=...)",
        )
    if align.max_attempts < 2:
        raise _problem("max_attempts", align.max_attempts, "2 or more")


def _as_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.model_dump_json()


def _problem(field: str, value: object, allowed: str, *, hint: str = "") -> ConfigError:
    hint = hint or f"change {field}"
    message = f"{value} is not allowed; allowed: {allowed}. Hint: {hint}"
    return ConfigError("calibrate", [Problem(field, message)])
