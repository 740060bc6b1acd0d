"""Choose the embedded pair's arm on one half of the dev openings; report it once on the other.

    python -m training.judge --imdb DIR --out JUDGE          (once)
    python -m benchmarks.embedded_pair --imdb DIR --judge JUDGE --out OUT

Prompts are the first 12 words of dev reviews; neither guide nor judge has read them or a copy of
them. Every arm writes 128 tokens by the default sampling, or fewer if the model ends its review
before. This holds for every arm alike, as in use, and length is a guard. Costs are drafted tokens
over the mean tokens of a plain answer. One candidate is drafted at a time, so there is no surplus.

Thresholds are calibrated for a budget on openings of training reviews. A candidate arm qualifies if
its guards hold, it spends at most --max-times on the select half, and it forces at most a tenth of
its segments, beyond which the engine itself warns. The qualified arm with the highest judge reward
is reported and written to OUT/align.yaml, or the arm of --ship in its place. A ramp for other
segments is written to OUT/ramp.yaml. The arms for a quarter of Best-of-16's tokens at segment_len
32, and for a sixth at 8, are always reported, under --aim-seeds of the seeds.

Best-of-N is the exact expectation over subsets of the plain answers; between two N it is linear.
Wins are counted against every plain answer to the same prompt. Intervals: bootstrap over prompts.
OUT keeps what was generated: an interrupted run resumes, and another report costs nothing.
`--until plain` generates only the plain answers; another process can do that during
`--until select`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from transformers.utils import logging as transformers_logging

from benchmarks.answers import Arms
from benchmarks.half import COMPARED, Half, guards_hold
from stars_engine import (
    AlignParams,
    EngineParams,
    NoSchedule,
    StarsConfig,
    StarsEngine,
)
from stars_engine.files.disk import write_file
from stars_engine.runtime.diagnostics import ForcedCheck
from stars_engine.schedules import BaseSchedule
from training.judge import load_judge
from training.split import openings

EMBEDDED = Path(__file__).parent.parent / "stars_engine" / "embedded"
NUM_PILOTS = 128
FIRST_SEED = 11
MOST_FORCED = ForcedCheck().limit
_COLUMNS = (
    "arm",
    "tokens x",
    "guide",
    "judge",
    "positive",
    "wins v. vanilla",
    "judge - Best-of-N, equal tokens",
    "judge - Best-of-16",
    "perplexity",
    "distinct-2 (over prompts)",
    "tokens",
    "forced",
    "guards",
)


@dataclass(frozen=True)
class Arm:
    """One arm of the comparison.

    Attributes:
        segment_len: Tokens judged together.
        budget: Drafted tokens over kept ones that its thresholds are calibrated for; None for a
            linear ramp up to the mean guide reward of Best-of-16 on the select half.
    """

    segment_len: int
    budget: float | None

    @property
    def name(self) -> str:
        """Return the name of the arm in the table."""
        if self.budget is None:
            return f"ramp, segment_len {self.segment_len}"
        return f"budget {self.budget:.1f}, segment_len {self.segment_len}"


QUARTER, SIXTH, RAMP = Arm(32, 16 / 4), Arm(8, 16 / 6), Arm(16, None)
CANDIDATES = (SIXTH, Arm(8, 4.0), Arm(16, 4.0), QUARTER, RAMP)


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = StarsConfig(
        align=AlignParams(schedule=NoSchedule()),
        engine=EngineParams(max_rows=512, max_active=1024),
    )
    if options.model is not None:
        config = config.replace(model=str(options.model))
    if options.reward is not None:
        config = config.replace(reward=str(options.reward))
    with StarsEngine(config) as engine:
        pair = Pair(engine, options)
        if options.until == "plain":
            pair.half("report")
            return
        report = pair.choose()
        if options.until == "report":
            report |= pair.report()
    write_file(options.out / "report.json", json.dumps(report, indent=2) + "\n", "report")
    tables = [
        f"{title}\n\n{markdown(report[name])}"
        for name, title in (
            ("select", f"Select half, {options.select} openings, chosen: {report['chosen']}"),
            ("report", f"Report half, {options.report} openings, {options.seeds} seeds"),
        )
        if name in report
    ]
    write_file(options.out / "report.md", "\n\n".join(tables) + "\n", "report")
    print("\n\n".join(tables))


class Pair:
    """A pair of models and the figures of its arms.

    Args:
        engine: Engine of the pair.
        options: Options of the command line.
    """

    def __init__(self, engine: StarsEngine, options: argparse.Namespace) -> None:
        self._options = options
        self._language_model = options.model or EMBEDDED / "lm"
        directories = (self._language_model, options.reward or EMBEDDED / "reward")
        self._arms = Arms(engine, options.out / "kept", directories)
        self._judge = load_judge(options.judge)
        self._pilots = openings(options.imdb, "pilot", NUM_PILOTS)
        self._chosen: Arm | None = None

    @cached_property
    def _select(self) -> Half:
        return self.half("select")

    def choose(self) -> dict[str, Any]:
        """Run the candidates on the select half; write the settings of the chosen one."""
        half = self._select
        rows: dict[str, Any] = {"vanilla": half.plain_figures()}
        for arm in CANDIDATES:
            rows[arm.name] = half.aligned(half.stars(self.settings(arm)))
            print(f"{arm.name}: {json.dumps(rows[arm.name])}", flush=True)
        tried = {arm: rows[arm.name] for arm in CANDIDATES}
        self._chosen = best(tried, rows["vanilla"], self._options.max_times)
        named = {arm.name: arm for arm in CANDIDATES}
        shipped = named[self._options.ship or self._chosen.name]
        for file, text in (
            ("align.yaml", as_shipped(self.settings(shipped))),
            ("ramp.yaml", yaml.safe_dump(_plain(half.ramp(8)), sort_keys=False)),
        ):
            write_file(self._options.out / file, text, "answers")
        return {"chosen": self._chosen.name, "select": rows}

    def report(self) -> dict[str, Any]:
        """Report the chosen arm, and the two arms whose budgets were fixed beforehand."""
        half = self.half("report")
        rows: dict[str, Any] = {"vanilla": half.plain_figures()}
        rows |= {f"Best-of-{n}": half.best_of_figures(n) for n in COMPARED if n <= half.num_plain}
        for arm in dict.fromkeys((self._chosen, QUARTER, SIXTH)):
            assert arm is not None, "choose comes first"
            num_seeds = self._options.seeds if arm == self._chosen else self._options.aim_seeds
            rows[arm.name] = half.aligned(half.stars(self.settings(arm), num_seeds))
        return {"report": rows}

    def settings(self, arm: Arm) -> AlignParams:
        """Return an arm's settings, with thresholds that are calibrated or read from a file."""
        half = self._select
        if arm.budget is None:
            schedule: Any = half.ramp(16)
        else:
            schedule = self._arms.thresholds(
                self._pilots, half.sampling, segment_len=arm.segment_len, budget=arm.budget
            )
        return AlignParams(schedule=schedule, segment_len=arm.segment_len, num_candidates=1)

    def half(self, name: Literal["select", "report"]) -> Half:
        """Return a half and its plain answers."""
        options = self._options
        num, num_seeds = {
            "select": (options.select, 1),
            "report": (options.report, options.seeds),
        }[name]
        return Half(
            openings(options.imdb, name, num),
            self._arms,
            self._judge,
            seeds=range(FIRST_SEED, FIRST_SEED + num_seeds),
            samples=options.samples,
            language_model=self._language_model,
            max_tokens=options.max_tokens,
        )


def best(tried: dict[Arm, dict[str, Any]], plain: dict[str, Any], max_times: float) -> Arm:
    """Return the arm with the highest judge reward whose guards hold and whose cost is allowed."""
    allowed = [
        arm
        for arm, figures in tried.items()
        if guards_hold(figures, plain)
        and figures["times"][0] <= max_times
        and figures["forced"] <= MOST_FORCED
    ]
    if not allowed:
        raise SystemExit(f"no candidate keeps its guards at {max_times} times an answer's tokens")
    return max(allowed, key=lambda arm: tried[arm]["judge"][0])


def as_shipped(align: AlignParams) -> str:
    """Return settings as YAML, without those that belong to the run and not to the text.

    Another sampling than the calibration's, another dtype, raw prompts and longer answers are what
    people try first; they should not cause warnings.
    """
    values = align.model_dump(mode="json", exclude_defaults=True, exclude={"num_candidates"})
    values["schedule"] = _plain(align.schedule)
    made_for = values["schedule"].get("made_for", {})
    for name in ("model", "sampling", "prompt_format", "pilot"):
        made_for.pop(name, None)
    return yaml.safe_dump(values, sort_keys=False)


def _plain(schedule: BaseSchedule | None) -> dict[str, Any]:
    assert schedule is not None
    return schedule.model_dump(mode="json", exclude_none=True)


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table of a half; the first row is plain sampling."""
    plain = rows["vanilla"]
    lines = [list(_COLUMNS), ["---", *["---:"] * (len(_COLUMNS) - 1)]]
    lines += [
        [
            name,
            f"{figures['times'][0]:.2f}",
            f"{figures['guide']:+.2f}",
            _interval(figures["judge"], "+.2f"),
            f"{figures['positive']:.0%}",
            _interval(figures["wins"], ".1%"),
            _interval(figures["over_equal_tokens"], "+.2f"),
            _interval(figures.get("over_best_of_16"), "+.2f"),
            f"{figures['perplexity']:.1f}",
            f"{figures['distinct-2']:.3f} ({figures['distinct-2 over prompts']:.3f})",
            f"{figures['tokens']:.0f}",
            "" if figures["forced"] is None else f"{figures['forced']:.1%}",
            "hold" if guards_hold(figures, plain) else "broken",
        ]
        for name, figures in rows.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(values: list[float] | None, form: str) -> str:
    if values is None:
        return ""
    value, low, high = (format(number, form) for number in values)
    return f"{value} [{low}, {high}]"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imdb", type=Path, required=True, help="folder of the *.jsonl.gz files")
    parser.add_argument("--judge", type=Path, required=True, help="folder of the trained judge")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for answers, thresholds and figures"
    )
    parser.add_argument("--model", type=Path, help="language model; default: the embedded one")
    parser.add_argument("--reward", type=Path, help="reward model; default: the embedded one")
    parser.add_argument("--select", type=int, default=100, help="openings that choose the arm")
    parser.add_argument("--report", type=int, default=300, help="openings that report the arm")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the report")
    parser.add_argument("--samples", type=int, default=16, help="plain answers to each opening")
    parser.add_argument(
        "--max-times", type=float, default=4.5, help="maximum cost of the chosen arm"
    )
    parser.add_argument("--max-tokens", type=int, default=128, help="tokens of every answer")
    parser.add_argument("--aim-seeds", type=int, default=1, help="seeds of the other reported arms")
    names = [arm.name for arm in CANDIDATES]
    parser.add_argument("--ship", choices=names, help="arm to ship instead of the chosen one")
    parser.add_argument("--until", choices=["plain", "select", "report"], default="report")
    return parser.parse_args()


if __name__ == "__main__":
    main()
