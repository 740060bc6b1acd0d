"""The trust report: measurements on a plain pilot, and the advice that follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from pydantic import Field

from stars_engine.calibration.advice import (
    ENOUGH_PROMPTS,
    Remedy,
    Verdict,
    advise,
    affordable_budget,
    choose,
)
from stars_engine.calibration.calibrate import default_segment_len
from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.calibration.judges import Judge, as_judge
from stars_engine.calibration.pilot_prompts import (
    checked_prompts,
    neutral_prompts,
    uses_chat_format,
)
from stars_engine.calibration.plain_answers import plain_answers
from stars_engine.calibration.provenance import provenance
from stars_engine.calibration.trust import (
    Answers,
    BorderTrust,
    SegmentTrust,
    between_prompts,
    borders,
    plain_curve,
    segment_trust,
)
from stars_engine.config import AlignParams, RewardConfig, SamplingParams
from stars_engine.display.pages import table
from stars_engine.errors import ConfigError, Problem
from stars_engine.schedules import CalibratedSchedule, CurvePoint, Estimate
from stars_engine.schema import Schema
from stars_engine.types import Prompt

GRID = 4  # tokens between the borders of the pilot
SEGMENT_LENS = (4, 8, 16, 32, 64, 128)
_REMEDY_LEN, _LOOKAHEAD = 16, 8


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
    affordable_budget: float | None = Field(
        description="largest measured budget, drafted over kept tokens, that forces few segments; "
        "None if none was measured"
    )
    verdict: Verdict = Field(
        description="whether STARS is expected to outperform Best-of-N, by the whole interval"
    )
    advice: tuple[str, ...] = Field(description="advice as text")
    about: dict[str, str] = Field(
        default={}, description="the models, settings, versions and date, as text"
    )

    @property
    def worthwhile(self) -> bool:
        """Whether STARS is expected to outperform Best-of-N."""
        return self.verdict == "worthwhile"

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show the verdict; `summary` shows the rest."""
        for name in ("verdict", "num_prompts", "recommended_segment_len", "affordable_budget"):
            yield name, getattr(self, name)

    def tables(self) -> dict[str, str]:
        """Return the measurements as HTML tables, by name."""
        segments = [
            (s.segment_len, _interval(s.advantage), f"{s.spearman_midway:.2f}")
            for s in self.segments
        ]
        borders = [
            (f"{b.num_tokens:.0f}", f"{b.spearman:.2f}", f"{b.pearson:.2f}", b.num_answers)
            for b in self._shown_borders()
        ]
        remedies = [
            (
                r.name,
                f"{r.trust.mean_len:.1f}",
                _interval(r.trust.advantage),
                f"{r.trust.spearman_midway:.2f}",
            )
            for r in self.remedies
        ]
        curve = [
            (
                f"{p.offset_sigmas:+.2f}",
                f"{p.acceptance:.2f}",
                f"{p.budget:.2f}",
                f"{p.forced:.3f}",
            )
            for p in self.curve[::2]
        ]
        advantage, midway = "advantage [95% interval]", "Spearman midway"
        return {
            "segments": table(("segment_len", advantage, midway), segments),
            "borders": table(("tokens read", "Spearman", "Pearson", "answers"), borders),
            "remedies": table(("segments", "mean length", advantage, midway), remedies),
            "curve": table(("sigmas", "acceptance", "drafted over kept", "forced"), curve),
        }

    def _repr_html_(self) -> str:
        """Return the advice and the main table for a notebook."""
        lines = "".join(f"<li>{escape(line)}</li>" for line in self.advice)
        return f"<ul>{lines}</ul>{self.tables()['segments']}"

    def summary(self) -> str:
        """Return the report as plain text."""
        lines = [
            *self.advice,
            "",
            *(f"{name}: {value}" for name, value in self.about.items()),
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
            shown = _interval(s.advantage)
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
        return "\n".join(lines)

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
        prompts: Prompts, at least 4 and preferably 50 or more, similar to those of later use;
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
        prompts = neutral_prompts(chat=uses_chat_format(engine), seed=seed)[:ENOUGH_PROMPTS]
    prompts = checked_prompts("trust_report", prompts, least=4)
    if not isinstance(num_answers, int) or num_answers < 4:
        raise _problem("num_answers", f"{num_answers!r} is not allowed. Hint: use 4 or more")
    sampling = engine.sampling if sampling is None else sampling
    sampling = sampling.replace(seed=seed, n=num_answers)
    if sampling.max_tokens < GRID:
        message = f"{sampling.max_tokens} is not allowed; allowed: {GRID} or more, because rewards "
        message += f"are measured every {GRID} tokens. Hint: use max_tokens=32"
        raise _problem("sampling.max_tokens", message)
    opinion = as_judge(judge)

    def pilot(**segments: Any) -> Answers:
        return plain_answers(
            engine,
            prompts,
            sampling=sampling,
            segments=segments,
            reward_prompt=reward_prompt,
            judge=opinion,
            title="trust_report",
        )

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
    chosen = choose(segments, default_segment_len(engine.reward, AlignParams()))
    length = chosen.segment.segment_len
    curve = (
        schedule.curve
        if schedule is not None
        else plain_curve(plain.coarser(length), max_attempts=AlignParams().max_attempts)
    )
    shared, budget = between_prompts(plain), affordable_budget(curve)
    return TrustReport(
        num_prompts=len(prompts),
        num_answers=len(plain.outcomes),
        judged_by=_judge_name(judge),
        borders=tuple(borders(plain)),
        segments=tuple(segments),
        between_prompts=shared,
        remedies=tuple(others),
        curve=curve,
        recommended_segment_len=length,
        affordable_budget=budget,
        verdict=chosen.verdict,
        advice=tuple(
            advise(
                chosen,
                others,
                shared=shared,
                num_prompts=len(prompts),
                budget=budget,
                calibrated_len=None if schedule is None else schedule.segment_len,
            )
        ),
        about=provenance(engine, sampling),
    )


def _judge_name(judge: Judge | RewardConfig | str | None) -> str:
    if judge is None:
        return "the reward of the whole answer"
    named = judge if isinstance(judge, str) else getattr(judge, "shown_name", None)
    named = named or getattr(judge, "__name__", type(judge).__name__)
    return f"the judge {named}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


_REMEDIES: dict[str, dict[str, Any]] = {
    f"none: segments of {_REMEDY_LEN}": {"segment_len": _REMEDY_LEN},
    "segments end with sentences": {
        "segment_len": 2 * _REMEDY_LEN,
        "segment_end": "sentence",
        "min_segment_len": _REMEDY_LEN // 2,
    },
    f"greedy lookahead of {_LOOKAHEAD}": {"segment_len": _REMEDY_LEN, "lookahead": _LOOKAHEAD},
}


def _problem(field: str, message: str) -> ConfigError:
    return ConfigError("trust_report", [Problem(field, message)])
