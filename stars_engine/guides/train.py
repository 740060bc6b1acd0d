"""`train_guide`: fit a guide to a language model's own answers, under any judge."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stars_engine.calibration.host import Host
from stars_engine.calibration.judges import Judge
from stars_engine.calibration.pilot_prompts import (
    checked_prompts,
    neutral_prompts,
    uses_chat_format,
)
from stars_engine.calibration.settings import dependencies, hash_of
from stars_engine.config import AlignParams, RewardConfig, SamplingParams
from stars_engine.errors import ConfigError, ModelLoadError, Problem
from stars_engine.files.disk import make_folder, write_file
from stars_engine.guides.judging import judge_samples, scorer_of
from stars_engine.guides.report import (
    GuideReport,
    calibration_of,
    positions_of,
    verdict_of,
)
from stars_engine.guides.samples import (
    JudgedAnswer,
    ProgressCallback,
    draw_samples,
    labelled_answers,
)
from stars_engine.types import Prompt

REPORT_FILE, CARD_FILE, SAMPLES_FILE, SETTINGS_FILE = (
    "report.json",
    "README.md",
    "samples.jsonl",
    "samples.json",
)
_MIN_PROMPTS, _DEFAULT_PROMPTS = 8, 64
_GRID = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_NUM_COMPARED = 256  # samples whose beginnings the judge scores, for comparison


def train_guide(
    engine: Host,
    out: str | Path,
    prompts: Sequence[Prompt] | None = None,
    *,
    judge: Judge | RewardConfig | str | None = None,
    answers: str | Path | None = None,
    num_answers: int = 16,
    sampling: SamplingParams | None = None,
    layers: Sequence[int] | None = None,
    shape: str = "auto",
    soft_value_beta: float | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> GuideReport:
    """Fit a guide, a value head, to answers of an engine's model, and write it to a folder.

    Answers are drawn by plain sampling, and the judge scores each whole answer. From the hidden
    states of an unfinished answer, the head learns to predict the judge's score of the whole
    answer. Layer, pooling, strength and shape are chosen by cross-validation over prompts. An
    interrupted call resumes with the samples in the folder.

    Args:
        engine: The `StarsEngine` whose language model is to be guided.
        out: The folder to write: the head, a report, a model card, and the samples.
        prompts: Prompts like those of later use, at least 8 and preferably 100 or more; None: a
            neutral set from the package.
        judge: What the head is to predict: a reward's config object or name, or a callable
            f(prompt, answer) -> number, which returns nan to exclude an answer. None: the engine's
            own reward.
        answers: JSON lines {prompt, answer, score} to learn from, instead of sampling and judging.
        num_answers: Answers per prompt, at least 2.
        sampling: The proposal and the length; None: the engine's.
        layers: Indices of hidden states to try; None: five of them.
        shape: "linear", "mlp" (one layer of width 64 between), or "auto" (the better one). "lora"
            fits a classifier with the language model's weights instead (extra `peft`), which
            `ClassifierReward(name_or_path=out, read="ids")` uses: a second model at decoding time.
        soft_value_beta: Fit the soft value beta * log E exp(score / beta) with this beta, in units
            of the score, instead of the expected score.
        seed: Seed of the answers and of the fit.
        progress: Called with the name of the part, the items done, and the total number of items.

    Returns:
        The report, whose figures are all on held-out prompts.

    Raises:
        ConfigError: An argument is out of range, or the folder holds samples of other settings.
        ModelLoadError: The language model gives no hidden states.
        RewardError: The judge failed.
    """
    # These import torch, which importing this function must not.
    from stars_engine.guides.fit import NUM_FOLDS  # noqa: PLC0415
    from stars_engine.guides.kinds import fit_head, fit_lora  # noqa: PLC0415
    from stars_engine.hidden_states.probes import gives_hidden_states  # noqa: PLC0415

    _check(num_answers=num_answers, shape=shape, soft_value_beta=soft_value_beta)
    progress = progress or (lambda *_: None)
    model: Any = engine.model
    if not gives_hidden_states(model):
        raise ModelLoadError(
            f"train_guide needs hidden states, and {type(model).__name__} gives none. Hint: use a "
            "TransformersModel in this process"
        )
    folder = make_folder(out, "train_guide")
    sampling = (engine.sampling if sampling is None else sampling).replace(seed=seed, n=num_answers)
    clock = _Clock()
    scorer = scorer_of(engine.config.reward if judge is None else judge)
    with clock.measure("sampling"):
        if answers is not None:
            samples = labelled_answers(engine, Path(answers), sampling)
        else:
            samples = _samples(engine, folder, prompts, sampling=sampling, progress=progress)
    longest = max(len(sample.token_ids) for sample in samples)
    positions = [size for size in _GRID if size < longest]
    with clock.measure("judging"):
        samples = judge_samples(
            samples,
            scorer,
            engine.model.codec,
            positions,
            num_compared=0 if answers is not None else _NUM_COMPARED,
            progress=progress,
        )
    samples = [s for s in samples if s.token_ids and s.score is not None and np.isfinite(s.score)]
    _check_scores(samples, NUM_FOLDS)
    with clock.measure("fitting"):
        fit = fit_lora if shape == "lora" else fit_head
        fitted = fit(
            model,
            samples,
            positions or [longest],
            seed=seed,
            progress=progress,
            layers=layers,
            shape=shape,
            soft_value_beta=soft_value_beta,
        )
    data, values = fitted.data, fitted.values
    found = positions_of(data, values, samples, seed=seed)
    slope, bins = calibration_of(values, data.scores)
    worthwhile, verdict = verdict_of(found, reward=fitted.reward)
    report = GuideReport(
        num_prompts=len({sample.prompt_index for sample in samples}),
        num_samples=len(samples),
        head=fitted.described,
        positions=tuple(found),
        tried=fitted.tried,
        slope=slope,
        bins=bins,
        seconds=clock.seconds,
        num_parameters=fitted.num_parameters,
        worthwhile=worthwhile,
        verdict=verdict,
    )
    about = {"judge": _name(judge, engine), "report": report.model_dump(mode="json")}
    fitted.save(folder, about)
    write_file(folder / REPORT_FILE, report.model_dump_json(indent=2) + "\n", "train_guide")
    named = getattr(engine.config.model, "name_or_path", None)
    named = named or type(getattr(model, "model", model)).__name__
    card = report.card(model=named, judge=_name(judge, engine), reward=fitted.reward)
    write_file(folder / CARD_FILE, card, "train_guide")
    return report


def _samples(
    engine: Host,
    folder: Path,
    prompts: Sequence[Prompt] | None,
    *,
    sampling: SamplingParams,
    progress: ProgressCallback,
) -> list[JudgedAnswer]:
    if prompts is None:
        neutral = neutral_prompts(chat=uses_chat_format(engine), seed=sampling.seed or 0)
        prompts = neutral[:_DEFAULT_PROMPTS]
    prompts = checked_prompts("train_guide", prompts, least=_MIN_PROMPTS)
    made_for = dependencies(engine.config, AlignParams(), sampling)
    settings = {
        "model": made_for["model"],
        "sampling": hash_of(sampling.model_dump(mode="json")),
        "prompts": hash_of(
            [p if isinstance(p, str) else p.model_dump(mode="json") for p in prompts]
        ),
    }
    align = engine.config.align
    if align.alternatives:  # draws are made segment by segment
        proposals = align.model_dump(mode="json", include={"alternatives", "segment_len"})
        settings["proposals"] = hash_of(proposals)
    known, path = folder / SETTINGS_FILE, folder / SAMPLES_FILE
    if known.exists() and json.loads(known.read_text(encoding="utf-8")) != settings:
        message = (
            f"{str(folder)!r} holds samples of another model, other prompts, other alternatives or "
            f"another sampling. Hint: use another folder, or delete {SAMPLES_FILE} and "
            f"{SETTINGS_FILE} in it"
        )
        raise _problem("out", message)
    write_file(known, json.dumps(settings, indent=2) + "\n", "train_guide")
    return draw_samples(engine, prompts, sampling, path, progress=progress)


def _check(*, num_answers: int, shape: str, soft_value_beta: float | None) -> None:
    if not isinstance(num_answers, int) or num_answers < 2:
        raise _problem("num_answers", f"{num_answers!r} is not allowed. Hint: use 2 or more")
    if shape not in ("auto", "linear", "mlp", "lora"):
        message = f"{shape!r} is not allowed. Hint: use 'auto', 'linear', 'mlp' or 'lora'"
        raise _problem("shape", message)
    if shape == "lora" and soft_value_beta is not None:
        message = "is for heads, not for shape='lora'. Hint: leave it out, or use another shape"
        raise _problem("soft_value_beta", message)
    if soft_value_beta is not None and not 0 < soft_value_beta < float("inf"):
        raise _problem(
            "soft_value_beta",
            f"{soft_value_beta!r} is not allowed. Hint: use a number > 0, or None",
        )


def _check_scores(samples: Sequence[JudgedAnswer], least: int) -> None:
    by_prompt: dict[int, set[float]] = {}
    for sample in samples:
        assert sample.score is not None
        by_prompt.setdefault(sample.prompt_index, set()).add(sample.score)
    telling = sum(len(scores) > 1 for scores in by_prompt.values())
    if telling < least:
        raise _problem(
            "judge",
            f"its scores differ among the answers to only {telling} of {len(by_prompt)} prompts, "
            f"and {least} are needed. Hint: use a finer judge, more prompts, or more answers",
        )


def _name(judge: Any, engine: Host) -> str:
    given = engine.config.reward if judge is None else judge
    for attribute in ("name_or_path", "function", "__qualname__", "kind"):
        value = getattr(given, attribute, None)
        if isinstance(value, str):
            return value
    return given if isinstance(given, str) else type(given).__name__


def _problem(field: str, message: str) -> ConfigError:
    return ConfigError("train_guide", [Problem(field, message)])


class _Clock:
    """Measures the duration of parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        started_s = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started_s
