"""Evaluate a recipe: choose arms on tuning prompts, report them on fresh ones."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import isnan
from pathlib import Path

from stars_engine.calibration.report import TrustReport, trust_report
from stars_engine.engine.engine import StarsEngine
from stars_engine.errors import ConfigError, Problem
from stars_engine.evaluation.figures import Evaluation, HalfFigures, ShownAnswer, ShownSegment
from stars_engine.evaluation.judges import Judges
from stars_engine.evaluation.measure import measure
from stars_engine.evaluation.perplexity import Likelihood
from stars_engine.evaluation.prompts import read_halves
from stars_engine.evaluation.recipe import Recipe
from stars_engine.evaluation.report import check_packages
from stars_engine.evaluation.runner import ArmAnswers, Progress, Runner
from stars_engine.evaluation.score_store import ScoreStore
from stars_engine.evaluation.store import identity, name_of
from stars_engine.evaluation.tables import GUIDE, Measures
from stars_engine.files.config_files import text_of
from stars_engine.files.disk import write_file
from stars_engine.types import Segment

_PACKAGES = ("stars-engine", "torch", "transformers", "numpy", "scipy", "evalica")


def evaluate(
    recipe: Recipe,
    directory: str | Path,
    progress: Progress = lambda _name, _done, _total: None,
) -> Evaluation:
    """Run an evaluation, or what is missing of it.

    Answers, thresholds and scores are stored in `directory`, so that an interrupted run resumes;
    answers of changed arms are generated anew, others are used again.

    Args:
        recipe: What to evaluate.
        directory: The folder of the evaluation; created if needed.
        progress: Called with what is being done, and units done and in total.

    Raises:
        ConfigError: Prompts cannot be read, or no candidate can be chosen.
        MissingExtraError: A package of the extra `eval` is not installed.
    """
    check_packages()
    directory = Path(directory)
    halves = read_halves(recipe.prompts)
    runner = Runner(recipe, halves, directory, progress)
    write_file(directory / "recipe.yaml", text_of(recipe, fallback=name_of), "recipe")
    measures = _measures(recipe, directory, progress)
    tuning: HalfFigures | None = None
    chosen: dict[str, str] = {}
    if recipe.choose:
        best_of = [recipe.largest_best_of] if recipe.largest_best_of else []
        names = [n for n in recipe.arms if n in {recipe.reference, *best_of, *recipe.candidates}]
        tuning = measure(recipe, runner.run(names, "tuning"), "tuning", measures)
        chosen = {
            family: choose(recipe, tuning, family, names) for family, names in recipe.choose.items()
        }
    reported = [n for n in recipe.arms if n not in recipe.candidates or n in chosen.values()]
    answers = runner.run(reported, "fresh")
    fresh = measure(recipe, answers, "fresh", measures)
    return Evaluation(
        recipe=recipe,
        versions=_versions(),
        fresh=fresh,
        tuning=tuning,
        chosen=chosen,
        trust=_trust(recipe, directory, halves.fresh, measures, progress),
        samples=_samples(recipe, answers, measures),
    )


def choose(recipe: Recipe, tuning: HalfFigures, family: str, names: Sequence[str]) -> str:
    """Return the candidate with the highest reward of the first judge.

    Its guards must hold, and its cost be at most `max_times`.

    Raises:
        ConfigError: No candidate qualifies.
    """
    judge = next(iter(recipe.judges), GUIDE)
    allowed = [
        name
        for name in names
        if tuning.arms[name].guards_hold and tuning.arms[name].costs.times.value <= recipe.max_times
    ]
    if not allowed:
        broken = {
            name: [guard for guard, held in tuning.arms[name].guards.items() if not held]
            or [f"costs {tuning.arms[name].costs.times.value:.2f} times a plain answer"]
            for name in names
        }
        message = (
            f"no candidate keeps its guards within max_times={recipe.max_times}: "
            + "; ".join(f"{name}: {', '.join(why)}" for name, why in broken.items())
            + ". Hint: other candidates, or wider guards"
        )
        raise ConfigError("Recipe", [Problem(f"choose.{family}", message)])
    return max(allowed, key=lambda name: tuning.arms[name].judges[judge].reward.value)


def _measures(recipe: Recipe, directory: Path, progress: Progress) -> Measures:
    store = ScoreStore(directory / "scores.jsonl")
    judges = Judges({**recipe.judges, GUIDE: recipe.config.reward}, store)

    def score(name: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
        def advance(done: int, total: int) -> None:
            progress(f"judge {name}", done, total)

        return judges.scores(name, pairs, advance)

    nats: Callable[[Sequence[tuple[str, str]]], list[tuple[float, int]]] | None = None
    if recipe.perplexity:
        likelihood = Likelihood(recipe.config, store)
        nats = partial(likelihood.nats, progress=partial(progress, "perplexity"))
    return Measures(score, nats)


def _trust(
    recipe: Recipe,
    directory: Path,
    prompts: Sequence[str],
    measures: Measures,
    progress: Progress,
) -> TrustReport | None:
    """Measure trust on the first fresh prompts; the outcome is the first judge's, if any."""
    settings = recipe.trust
    if settings is None:
        return None
    about = [identity(part) for part in (recipe.config, recipe.sampling, settings)]
    about += [*prompts, *map(identity, recipe.judges.values())]
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=8).hexdigest()
    path = directory / f"trust-{digest}.json"
    if path.exists():
        return TrustReport.model_validate_json(path.read_bytes())
    judge = next(iter(recipe.judges), None)
    progress("trust", 0, 1)
    with StarsEngine(recipe.config) as engine:
        report = trust_report(
            engine,
            prompts[: settings.num_prompts],
            judge=None
            if judge is None
            else lambda prompt, answer: measures.score(judge, [(prompt, answer)])[0],
            num_answers=settings.num_answers,
            remedies=False,
            sampling=recipe.sampling,
        )
    if judge is not None:
        report = report.replace(judged_by=f"the judge {judge}")
    progress("trust", 1, 1)
    write_file(path, report.model_dump_json(), "trust")
    return report


def _samples(
    recipe: Recipe, answers: Mapping[str, ArmAnswers], measures: Measures
) -> tuple[ShownAnswer, ...]:
    """Return the first answers of each arm to the first prompts."""
    shown = []
    for index in range(recipe.num_samples):
        for name, own in answers.items():
            record = next((r for r in own.records if r.prompt_index == index), None)
            if record is None:
                continue
            result = record.results[0]
            shown.append(
                ShownAnswer(
                    prompt=record.prompt,
                    arm=name,
                    reward=result.reward,
                    judges={
                        judge: measures.score(judge, [(record.prompt, result.text)])[0]
                        for judge in recipe.judges
                    },
                    segments=tuple(map(_shown, result.segments)),
                )
            )
    return tuple(shown)


def _shown(segment: Segment) -> ShownSegment:
    rejected = [
        (attempt.reward, attempt.text or "")
        for attempt in segment.attempts
        if attempt.verdict == "rejected"
    ]
    return ShownSegment(
        text=segment.text,
        reward=segment.reward,
        # Best-of-N has no threshold, which a segment holds as nan.
        threshold=None if isnan(segment.threshold or 0.0) else segment.threshold,
        verdict=segment.verdict,
        rejected=tuple(rejected),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
