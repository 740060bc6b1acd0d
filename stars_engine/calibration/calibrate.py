"""Calibration: pilot answers in, a `CalibratedSchedule` out."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stars_engine.calibration.checkpoint import SavedStages
from stars_engine.calibration.effort import effort_curve, pilot_effort
from stars_engine.calibration.fingerprints import stamps
from stars_engine.calibration.fit import Fitter, Target
from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.calibration.pilot import Pilot, schedule_of
from stars_engine.calibration.pilot_prompts import checked_prompts, neutral_prompts, speaks_chat
from stars_engine.calibration.settings import dependencies, hash_of
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.errors import ConfigError, Problem, StarsWarning
from stars_engine.schedules import CalibratedSchedule
from stars_engine.schedules.auto import DEFAULT_BUDGET
from stars_engine.types import Prompt, StarsResult

logger = logging.getLogger(__name__)

MIN_PROMPTS, DEFAULT_PROMPTS = 8, 96
_FEW_PROMPTS = 50  # below which a missed target is no surprise
_DRAFTS_PER_STAGE = 640  # fewer give acceptances of .21 to .51 where .3 was meant
_SHARING_LEN, _FOREIGN_LEN = 8, 16

Progress = Callable[[int, int], None]  # stages done, stages in all


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
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CalibratedSchedule:
    """Find thresholds for an engine's models, so that nobody sets them by hand.

    Stage by stage, each segment's drafts are regressed on the reward of the prefix they continue,
    and the threshold is set above that baseline so that the target is met on prefixes which the
    thresholds before it accepted. Same arguments, same result.

    Args:
        engine: Whose models are calibrated; a `StarsEngine`.
        prompts: Pilot prompts, at least 8 and better 100 or more, like those of later use; None:
            a neutral set inside the package.
        budget: Target: drafted tokens over kept tokens, above 1 and below `max_attempts`. Without
            any target it is 2.7.
        target_acceptance: Target: acceptance probability of a segment's first draft, in (0, 1).
        target_forced: Target: share of segments kept without acceptance, in (0, 1).
        segment_len: Tokens judged together; None: that of `align` or of the engine's config where
            it was set, else 8 for a reward that reads the language model's own tokens, else 16.
        relative_beta: Acceptance softness over the standard deviation of drafts' rewards; None:
            `align.beta`, which is in reward units.
        align: The test but for its thresholds; None: the engine's.
        sampling: The proposal, and `max_tokens`, which sets the number of stages: those of whole
            segments. Shorter answers get the same thresholds. None: the engine's.
        reward_prompt: What the reward reads in place of each prompt.
        num_drafts: Drafts of each prefix, up to `max_attempts`; None: 640 in all for each stage, at
            least 4.
        seed: Of the pilot.
        progress: Called with the stages done and the stages in all. What it raises is logged.
        checkpoint: A file that keeps finished stages; an interrupted calibration goes on from it,
            and says so, unless weights' files or a function's source have changed since. Kept
            stages are the same bit for bit. Later ones are up to float32 rounding: prefixes are
            drafted again in smaller batches, which round otherwise.
        should_stop: Asked before each stage, like `progress`: true ends the calibration, for good.

    Raises:
        ConfigError: An argument is out of its range, or `checkpoint` cannot be written.
        RequestError: The reward failed on a pilot prompt.
        CalibrationStoppedError: `should_stop` said so.
    """
    target = _target(budget, target_acceptance, target_forced)
    sampling = (engine.sampling if sampling is None else sampling).replace(seed=seed, n=1)
    align = _test(engine, align, segment_len, relative_beta)
    check_settings(target, sampling, align)
    if prompts is None:
        prompts = neutral_prompts(chat=speaks_chat(engine), seed=seed)[:DEFAULT_PROMPTS]
    prompts = checked_prompts("calibrate", prompts, least=MIN_PROMPTS)
    if num_drafts is None:
        num_drafts = max(4, math.ceil(_DRAFTS_PER_STAGE / len(prompts)))
        num_drafts = min(num_drafts, align.max_attempts)
    if not 2 <= num_drafts <= align.max_attempts:
        raise _problem("num_drafts", num_drafts, f"from 2 to max_attempts={align.max_attempts}")

    fitter = Fitter(
        target,
        max_attempts=align.max_attempts,
        beta=align.beta if relative_beta is None else None,
        stops=align.on_exhausted == "stop",
        relative_beta=relative_beta or 0.0,
    )
    made_for = dependencies(engine.config, align, sampling)
    sampling = _of_whole_segments(sampling, align)
    pilot = {
        "target": {target.name: target.value},
        "relative_beta": relative_beta,
        "max_tokens": sampling.max_tokens,
        "prompts": hash_of([_as_text(prompt) for prompt in prompts]),
        "num_prompts": len(prompts),
        "num_drafts": num_drafts,
        "on_exhausted": align.on_exhausted,
        "seed": seed,
    }
    num_stages = math.ceil(sampling.max_tokens / align.segment_len)
    stamped = {} if checkpoint is None else stamps(engine.config)
    saved = SavedStages(checkpoint, {**made_for, "pilot": pilot, "stamps": stamped})
    saved.restore(fitter, num_stages)

    def stage_done() -> None:
        try:
            saved.save(fitter)
            if progress is not None:
                progress(len(fitter.lines), max(num_stages, len(fitter.lines)))
        except Exception:
            logger.exception("A finished stage could not be reported or saved")

    running = Pilot(
        engine, fitter, num_drafts=num_drafts, on_stage=stage_done, should_stop=should_stop
    )
    results = running.run(prompts, sampling=sampling, align=align, reward_prompt=reward_prompt)
    assert fitter.beta is not None
    made_for["align"]["beta"] = fitter.beta
    schedule = schedule_of(
        fitter,
        len(fitter.lines) - 1,
        segment_len=align.segment_len,
        made_for={**made_for, "pilot": pilot},
        predicted=pilot_effort(fitter, results),
        curve=effort_curve(fitter),
    )
    _warn_of_pilot(schedule, results)
    saved.discard()
    return schedule


def default_segment_len(reward: Any, align: AlignParams) -> int:
    """Return the segment length to begin with.

    Short segments align best; how short pays depends on what a reward call costs. One that reads
    the language model's own tokens reads few new ones each time, others read everything anew.
    """
    usual = _SHARING_LEN if getattr(reward, "reads_ids", False) else _FOREIGN_LEN
    return max(usual, align.min_segment_len or 0)


def _test(
    engine: Host, align: AlignParams | None, segment_len: int | None, relative_beta: float | None
) -> AlignParams:
    """Return the test whose thresholds are sought.

    An answer that would raise or end with a fallback stops there, which costs the same.
    """
    base = engine.config.align if align is None else align
    changes: dict[str, Any] = {
        "schedule": None,
        "on_exhausted": pilot_end(base),
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


def pilot_end(align: AlignParams) -> str:
    """Return what a pilot does when no draw was accepted: as its user, but for what is said."""
    return align.on_exhausted if align.on_exhausted in ("best", "last") else "stop"


def _of_whole_segments(sampling: SamplingParams, align: AlignParams) -> SamplingParams:
    """Leave out a last segment that `max_tokens` cuts short: other answers go on behind it."""
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
        raise ConfigError("calibrate", [Problem(names, "are both targets; give one of them")])
    [(name, value)] = chosen.items()
    if name == "budget" and not value > 1:
        raise _problem(name, value, "a number above 1 (drafted tokens over kept tokens)")
    if name != "budget" and not 0 < value < 1:
        raise _problem(name, value, "a number between 0 and 1")
    return Target(name, float(value))


def check_settings(target: Target, sampling: SamplingParams, align: AlignParams) -> None:
    """Check what needs neither models nor prompts.

    Raises:
        ConfigError: No thresholds can be found with these settings.
    """
    if target.name == "budget" and target.value >= align.max_attempts:
        raise _problem(
            "budget", target.value, f"above 1 and below max_attempts={align.max_attempts}"
        )
    if sampling.temperature == 0:
        raise _problem(
            "temperature",
            0,
            "above 0, since at 0 all draws of a segment are equal; or give thresholds of your own, "
            "ConstantSchedule(value=...)",
        )
    if align.max_attempts < 2:
        raise _problem("max_attempts", align.max_attempts, "2 or more, or there is no choice")


def _as_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt.model_dump_json()


def _warn_of_pilot(schedule: CalibratedSchedule, results: Sequence[StarsResult]) -> None:
    ineligible = sum(result.usage.num_ineligible for result in results)
    attempts = sum(result.usage.num_attempts for result in results)
    if ineligible > attempts / 2:
        warnings.warn(
            f"{ineligible} of {attempts} pilot drafts had no finite reward or were vetoed; the "
            "thresholds rest on the others. Cure: look at the reward, or lower its floor",
            StarsWarning,
            stacklevel=3,
        )
    predicted = schedule.predicted
    target = schedule.made_for["pilot"]["target"]
    stops = schedule.made_for["pilot"]["on_exhausted"] == "stop"
    for name, wanted in target.items():
        if name == "target_forced" and stops:
            continue  # none is forced: it is the share of segments that answers stop before
        found = getattr(predicted, name.removeprefix("target_")).value
        if not abs(found - wanted) <= 0.25 * max(wanted, 0.2):  # nan too
            num_prompts = schedule.made_for["pilot"]["num_prompts"]
            reason = (
                "Rewards of few values leave no threshold in between. Cure: a finer reward, beta "
                "above 0, or another target"
                if num_prompts >= _FEW_PROMPTS
                else f"{num_prompts} pilot prompts tell little, and rewards of few values leave no "
                "threshold in between. Cure: 100 prompts and more, or a finer reward"
            )
            logger.warning(
                "the target %s=%s is not met: %.3f is predicted. %s", name, wanted, found, reason
            )
    if predicted is not None:
        logger.info("calibrated %d stages: %s", len(schedule.stages), schedule.predicted)


def _problem(field: str, value: object, allowed: str) -> ConfigError:
    return ConfigError("calibrate", [Problem(field, f"{value} is not allowed; {allowed}")])
