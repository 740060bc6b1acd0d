"""The trust report: measurements on a plain pilot, and the advice that follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
from pydantic import Field

from stars_engine.calibration.calibrate import default_segment_len
from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.calibration.pilot_prompts import (
    checked_prompts,
    neutral_prompts,
    uses_chat_format,
)
from stars_engine.calibration.trust import (
    WORTHWHILE,
    Answers,
    BorderTrust,
    SegmentTrust,
    between_prompts,
    borders,
    plain_curve,
    segment_trust,
)
from stars_engine.config import AlignParams, RewardConfig, SamplingParams
from stars_engine.config.rewards import as_reward
from stars_engine.errors import ConfigError, Problem, RewardError, describe_error
from stars_engine.reals import real_number
from stars_engine.rewards.base import score_each
from stars_engine.rewards.loading import load_reward
from stars_engine.schedules import CalibratedSchedule, CurvePoint, NoSchedule
from stars_engine.schema import Schema
from stars_engine.types import Prompt, RewardInput, RewardPrompt, StarsResult

GRID = 4  # tokens between the borders of the pilot
SEGMENT_LENS = (4, 8, 16, 32, 64, 128)
_SHORT, _LONG = 2.7, 4.3  # budgets that did well with segments up to 16 tokens, and above
_REMEDY_LEN, _LOOKAHEAD = 16, 8

Judge = Callable[[str, str], float]
_REWARDS = get_args(get_args(RewardConfig)[0])  # the classes of config objects


class Remedy(Schema):
    """An alternative way to cut and score segments, measured on plain answers."""

    name: str = Field(description="the change", examples=["segments end with sentences"])
    settings: dict[str, Any] = Field(description="the fields of AlignParams that make it")
    trust: SegmentTrust = Field(description="the measured effect")


class TrustReport(Schema):
    """How well a reward judges unfinished text, with advice."""

    num_prompts: int = Field(description="number of pilot prompts")
    num_answers: int = Field(description="number of plain answers to them")
    judged_by: str = Field(description="source of the outcome: the reward itself, or a judge")
    borders: tuple[BorderTrust, ...] = Field(description="results by tokens read")
    segments: tuple[SegmentTrust, ...] = Field(description="results by segment length")
    between_prompts: float = Field(
        description="share of the final reward's variance that lies between prompts, 0 to 1"
    )
    remedies: tuple[Remedy, ...] = Field(default=(), description="measured alternatives")
    curve: tuple[CurvePoint, ...] = Field(
        default=(),
        description="acceptance and cost over the offset above the expected reward: from the "
        "calibration if one is given, else from the plain answers at the recommended segment_len",
    )
    recommended_segment_len: int = Field(description="segment length to start with")
    recommended_budget: float = Field(description="drafted over kept tokens to start with")
    worthwhile: bool = Field(description="whether STARS is expected to outperform Best-of-N")
    advice: tuple[str, ...] = Field(description="advice as text")

    def summary(self) -> str:
        """Return the report as plain text."""
        lines = [
            f"{self.num_answers} plain answers to {self.num_prompts} prompts",
            f"outcome: {self.judged_by}",
            "",
            "tokens read   Spearman   Pearson   answers",
        ]
        lines += [
            f"{b.num_tokens:11.0f} {b.spearman:10.2f} {b.pearson:9.2f} {b.num_answers:9d}"
            for b in self._shown_borders()
        ]
        lines += ["", "segment_len   expected advantage over Best-of-N   Spearman midway"]
        for s in self.segments:
            a = s.advantage
            shown = f"{a.value:.2f} [{a.low:.2f}, {a.high:.2f}]"
            lines.append(f"{s.segment_len:11d}   {shown:>33}   {s.spearman_midway:15.2f}")
        if self.remedies:
            lines += ["", f"{'remedy':32} mean length   advantage   Spearman midway"]
            lines += [
                f"{r.name:32} {r.trust.mean_len:11.1f} {r.trust.advantage.value:11.2f} "
                f"{r.trust.spearman_midway:17.2f}"
                for r in self.remedies
            ]
        if self.curve:
            lines += ["", "above the expected reward   acceptance   drafted over kept   forced"]
            lines += [
                f"{p.offset_sigmas:+21.2f} sigma {p.acceptance:12.2f} {p.budget:19.2f} "
                f"{p.forced:8.3f}"
                for p in self.curve[::2]
            ]
        return "\n".join([*lines, "", *self.advice])

    def _shown_borders(self) -> list[BorderTrust]:
        step = max(1, len(self.borders) // 8)
        return list(self.borders[step - 1 :: step])


def trust_report(
    engine: Host,
    prompts: Sequence[Prompt] | None = None,
    *,
    judge: Judge | RewardConfig | str | None = None,
    num_answers: int = 8,
    remedies: bool = True,
    schedule: CalibratedSchedule | None = None,
    sampling: SamplingParams | None = None,
    reward_prompt: RewardPrompts = None,
    seed: int = 2,
) -> TrustReport:
    """Measure how well the reward of a prefix predicts the outcome, on plainly sampled answers.

    Args:
        engine: The `StarsEngine` whose models are measured.
        prompts: Prompts, at least 4 and preferably 24 or more, similar to those of later use;
            None: a neutral set from the package.
        judge: A second opinion on whole answers: a reward's config object or name, or a callable
            f(prompt, answer) -> number, which returns nan to exclude an answer. None: the outcome
            is the reward of the whole answer. An independent judge is preferable.
        num_answers: Answers per prompt, at least 4.
        remedies: Also measure segments that end with sentences, and a greedy lookahead.
        schedule: A calibration of the same models, whose curve of acceptance and cost is reported;
            None: the curve is computed from the plain answers, whose prefixes no threshold has
            accepted.
        sampling: The proposal and the length; None: the engine's.
        reward_prompt: Replaces each prompt for the reward model.
        seed: Seed of the answers.

    Raises:
        ConfigError: There are too few prompts or answers, the answers are too short, or `judge` is
            invalid.
        RewardError: The judge failed, or returned something that is not a number.
    """
    if prompts is None:
        prompts = neutral_prompts(chat=uses_chat_format(engine), seed=seed)[:24]
    prompts = checked_prompts("trust_report", prompts, least=4)
    if not isinstance(num_answers, int) or num_answers < 4:
        raise _problem("num_answers", f"{num_answers!r} is not allowed; an integer of 4 or more")
    sampling = engine.sampling if sampling is None else sampling
    sampling = sampling.replace(seed=seed, n=num_answers)
    if sampling.max_tokens < GRID:
        message = f"{sampling.max_tokens} is not allowed; {GRID} or more, preferably 32"
        raise _problem(
            "sampling.max_tokens", f"{message}: rewards are measured every {GRID} tokens"
        )
    opinion = _judge(judge)

    def pilot(**settings: Any) -> Answers:
        align = AlignParams(schedule=NoSchedule(), num_candidates=1, **settings)
        results = engine.generate(
            prompts, sampling=sampling, align=align, reward_prompt=reward_prompt
        )
        return _answers(results, prompts, opinion)

    plain = pilot(segment_len=GRID)
    lengths = [length for length in SEGMENT_LENS if length <= sampling.max_tokens]
    segments = [segment_trust(plain.coarser(length), length, seed=seed) for length in lengths]
    others = []
    if remedies:
        for name, settings in _REMEDIES.items():
            others.append(
                Remedy(
                    name=name,
                    settings=settings,
                    trust=segment_trust(pilot(**settings), settings["segment_len"], seed=seed),
                )
            )
    default = default_segment_len(engine.reward, AlignParams())
    length, worthwhile = _recommend(segments, default)
    shared = between_prompts(plain)
    return TrustReport(
        num_prompts=len(prompts),
        num_answers=len(plain.outcomes),
        judged_by="the reward of the whole answer" if judge is None else "a judge",
        borders=tuple(borders(plain)),
        segments=tuple(segments),
        between_prompts=shared,
        remedies=tuple(others),
        curve=schedule.curve
        if schedule is not None
        else plain_curve(plain.coarser(length), max_attempts=AlignParams().max_attempts),
        recommended_segment_len=length,
        recommended_budget=_budget(length),
        worthwhile=worthwhile,
        advice=tuple(_advise(segments, others, length, shared, worthwhile=worthwhile)),
    )


_REMEDIES: dict[str, dict[str, Any]] = {
    f"none: segments of {_REMEDY_LEN}": {"segment_len": _REMEDY_LEN},
    "segments end with sentences": {
        "segment_len": 2 * _REMEDY_LEN,
        "segment_end": "sentence",
        "min_segment_len": _REMEDY_LEN // 2,
    },
    f"greedy lookahead of {_LOOKAHEAD}": {"segment_len": _REMEDY_LEN, "lookahead": _LOOKAHEAD},
}


def _answers(
    results: Sequence[StarsResult], prompts: Sequence[Prompt], judge: Judge | None
) -> Answers:
    used, outcomes = [], []
    for result in results:
        own = _rewards(result)
        if not own:
            continue
        outcome = own[-1]
        if judge is not None:
            outcome = _opinion(judge, _text(prompts[result.prompt_index]), result)
        if np.isfinite(outcome):
            used.append(result)
            outcomes.append(outcome)
    if not used:
        message = (
            "no answer has a finite outcome; raise max_tokens, or check the reward and the judge"
        )
        raise _problem("sampling", message)
    rewards = [np.array(_rewards(result)) for result in used]
    tokens = [np.cumsum([len(s.token_ids) for s in result.segments]) for result in used]
    return Answers(
        np.array([result.prompt_index for result in used]),
        rewards,
        [part.astype(float) for part in tokens],
        np.array(outcomes, dtype=float),
    )


def _judge(judge: Judge | RewardConfig | str | None) -> Judge | None:
    """Return a callable that judges whole answers; check it before anything is generated."""
    judge = as_reward(judge) if isinstance(judge, str) else judge
    if isinstance(judge, _REWARDS):
        return _opinion_of(judge)
    if judge is None or (callable(judge) and not isinstance(judge, type)):
        return judge
    raise _problem(
        "judge",
        f"{judge!r} is not allowed; use a callable f(prompt, answer) -> number, a reward's config "
        "object or name, or None for the reward itself",
    )


def _opinion(judge: Judge, prompt: str, result: StarsResult) -> float:
    """Call the judge on one answer; turn its errors into `RewardError`."""
    try:
        return real_number(judge(prompt, result.text), "an opinion")
    except Exception as error:
        raise RewardError(
            f"the judge failed on an answer to prompts[{result.prompt_index}]: "
            f"{describe_error(error)}. Hint: fix the judge; it takes (prompt, answer) and returns "
            "a number, or nan to exclude the answer",
            result,
        ) from error


def _problem(field: str, message: str) -> ConfigError:
    return ConfigError("trust_report", [Problem(field, message)])


def _opinion_of(config: RewardConfig) -> Judge:
    """Load a reward model that judges whole answers as text."""
    model = load_reward(config)

    def opinion(prompt: str, answer: str) -> float:
        item = RewardInput(RewardPrompt(prompt), answer, (), finished=True)
        [score] = score_each(model, [item])
        if isinstance(score, RewardError):
            raise score
        return score.value

    return opinion


def _rewards(result: StarsResult) -> list[float]:
    """Return the rewards at every border of an answer; empty if one is missing."""
    rewards = [s.reward for s in result.segments if s.reward is not None]
    return rewards if len(rewards) == len(result.segments) else []


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    messages = getattr(prompt, "messages", None) or ()
    return getattr(prompt, "text", None) or "\n\n".join(message.content for message in messages)


def _recommend(segments: Sequence[SegmentTrust], default: int) -> tuple[int, bool]:
    """Return the default length, or the best one if the default is not worthwhile."""
    best = max(segments, key=lambda s: np.nan_to_num(s.advantage.value, nan=-1.0))
    by_len = {s.segment_len: s for s in segments}
    usual = by_len.get(default, best)
    chosen = usual if usual.advantage.value >= WORTHWHILE else best
    return chosen.segment_len, bool(chosen.advantage.value >= WORTHWHILE)


def _budget(segment_len: int) -> float:
    return _SHORT if segment_len <= 16 else _LONG


def _advise(
    segments: Sequence[SegmentTrust],
    remedies: Sequence[Remedy],
    length: int,
    shared: float,
    *,
    worthwhile: bool,
) -> list[str]:
    chosen = next(s for s in segments if s.segment_len == length)
    advantage = chosen.advantage
    lines = []
    if np.isnan(advantage.value):
        lines.append(
            "The reward of whole answers does not correlate with the outcome, or does not vary. "
            "Neither STARS nor Best-of-N can improve on it. Use another reward."
        )
    elif worthwhile:
        lines.append(
            f"Segments of {length} tokens: expected advantage {advantage.value:.2f} over Best-of-N "
            f"(95% interval {advantage.low:.2f} to {advantage.high:.2f}). STARS is worthwhile."
        )
        if advantage.low < WORTHWHILE:
            lines.append(
                "The interval includes values below 1.2; use more pilot prompts to decide."
            )
    else:
        lines.append(
            f"No segment length reaches an expected advantage of {WORTHWHILE} over Best-of-N "
            f"(best: {length} tokens, {advantage.value:.2f}). The reward of unfinished text hardly "
            "predicts the outcome. Use engine.best_of_n(...), a longer segment, or a reward model "
            "trained on prefixes."
        )
    begin = "Start with" if worthwhile else "To try STARS nevertheless, start with"
    lines.append(
        f"{begin} segment_len={length} and budget={_budget(length)} (drafted tokens per kept "
        "token)."
    )
    if chosen.spearman_midway < 0.3:
        lines.append(
            "Midway through an answer, the rank correlation of reward and outcome among answers to "
            f"one prompt is only {chosen.spearman_midway:.2f}."
        )
    lines.append(
        f"{shared:.0%} of the final reward's variance lies between prompts, the rest between "
        "answers to one prompt"
        + (
            ": fixed thresholds would force hard prompts and accept nearly everything for easy "
            "ones. Use calibrated thresholds."
            if shared > 0.5
            else ", which is the part that a choice among answers can improve."
        )
    )
    if remedies:
        plain, *others = remedies
        best = max(others, key=lambda r: np.nan_to_num(r.trust.advantage.value, nan=-1.0))
        gain = best.trust.advantage.value - plain.trust.advantage.value
        if gain > 0.1:
            fields = ", ".join(f"{key}={value!r}" for key, value in best.settings.items())
            lines.append(
                f"{best.name}: advantage {best.trust.advantage.value:.2f} instead of "
                f"{plain.trust.advantage.value:.2f}; AlignParams({fields})."
            )
        else:
            lines.append(
                "Neither sentence borders nor a lookahead are expected to improve on this."
            )
    return lines
