"""Small evaluations of the embedded pair: costs, resuming, choosing, and the written reports."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stars_engine import ConfigError, SamplingParams, StarsEngine
from stars_engine.evaluation import (
    BestOfNArm,
    BlockwiseArm,
    Evaluation,
    PlainTarget,
    PromptSet,
    Recipe,
    RejectionArm,
    StarsArm,
    VanillaArm,
    evaluate,
    write_reports,
)
from stars_engine.evaluation.figures import ArmFigures
from stars_engine.evaluation.judges import Judges
from stars_engine.evaluation.perplexity import Likelihood
from stars_engine.evaluation.store import AnswerRecord, AnswerStore, name_of
from tests.support.evaluation import SPEED

NUM_PROMPTS = 8
ZERO = {"kind": "constant", "value": 0.0}


def long_words(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """A judge that has nothing to do with the guide."""
    return [float(np.mean([len(word) for word in text.split()] or [0])) for text in answers]


def small_recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "small",
        "title": "Is it small?",
        "prompts": PromptSet(tuning=8, fresh=NUM_PROMPTS),
        "sampling": SamplingParams(max_tokens=16, n=2),
        "judges": {"long words": long_words},
        "batch_size": 4,
        "num_samples": 2,
        "arms": {
            "vanilla": VanillaArm(),
            "best of 2": BestOfNArm(n=2),
            "best of 4": BestOfNArm(n=4),
            "rejection": RejectionArm(target=PlainTarget(best_of=2), max_attempts=4),
            "blockwise": BlockwiseArm(m=2, segment_len=8),
            "STARS": StarsArm(align={"schedule": ZERO, "segment_len": 8}),
        },
    }
    return Recipe(**{**values, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    directory = tmp_path_factory.mktemp("evaluation")
    return evaluate(small_recipe(), directory), directory


def records(directory: Path, arm: str) -> list[AnswerRecord]:
    lines = (directory / "answers.jsonl").read_text().splitlines()
    found = [AnswerRecord.model_validate_json(line) for line in lines]
    return [record for record in found if record.arm == arm]


def figures(evaluation: Evaluation, *, rounded: bool = False) -> Any:
    """All figures but those of time, and of drafts that were not needed; numbers up to rounding."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: kept(part) for name, part in value.items() if not SPEED.search(name)}
        if isinstance(value, float) and rounded:
            return pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True)
        return [kept(part) for part in value] if isinstance(value, list) else value

    return kept(json.loads(evaluation.model_dump_json(fallback=name_of)))


def test_costs_are_those_of_the_answers(finished: tuple[Evaluation, Path]) -> None:
    evaluation, directory = finished
    plain = [r for record in records(directory, "vanilla") for r in record.results]
    assert len(plain) == 2 * NUM_PROMPTS
    length = np.mean([len(result.token_ids) for result in plain])
    for name, arm in evaluation.fresh.arms.items():
        own = [r for record in records(directory, name) for r in record.results]
        drafted = np.mean([r.usage.num_drafted_tokens for r in own])
        assert arm.costs.times.value == pytest.approx(drafted / length)
        generated = np.mean([r.usage.num_generated_tokens for r in own])
        assert arm.costs.generated_times == pytest.approx(generated / length)
        assert arm.costs.reward_calls == np.mean([r.usage.num_reward_calls for r in own])
        assert arm.num_answers == 2 * NUM_PROMPTS
        assert arm.guide.value == pytest.approx(np.mean([r.reward for r in own]), abs=1e-4)
    # Four whole answers, each counted: drafts that are not kept cost as much as kept ones.
    best = evaluation.fresh.arms["best of 4"]
    samples = [r for record in records(directory, "best of 4") for r in record.results]
    spent = np.mean([sum(a.num_tokens for s in r.segments for a in s.attempts) for r in samples])
    assert best.costs.drafted_tokens == spent
    assert best.costs.reward_calls == 4


def test_judges_see_the_final_answers(finished: tuple[Evaluation, Path]) -> None:
    evaluation, directory = finished
    own = [r.text for record in records(directory, "STARS") for r in record.results]
    expected = np.mean(long_words([], own))
    figures = evaluation.fresh.arms["STARS"].judges["long words"]
    assert figures.reward.value == pytest.approx(expected)
    assert figures.reward.low <= expected <= figures.reward.high
    assert figures.wins is not None
    assert evaluation.fresh.arms["vanilla"].judges["long words"].wins is None


def test_segments_are_counted(finished: tuple[Evaluation, Path]) -> None:
    evaluation, directory = finished
    own = [r for record in records(directory, "STARS") for r in record.results]
    attempts = [len(s.attempts) for r in own for s in r.segments]
    found = evaluation.fresh.arms["STARS"].segments
    assert found is not None
    assert found.attempts_mean == np.mean(attempts)
    assert found.attempts_max == max(attempts)
    assert sum(found.histogram) == found.num_segments == len(attempts)
    assert found.forced == np.mean([s.forced for r in own for s in r.segments])
    first = [r.segments[0] for r in own]
    accepted = sum(not s.forced for s in first) / sum(len(s.attempts) for s in first)
    assert found.acceptance[0] == accepted
    assert evaluation.fresh.arms["vanilla"].segments is None


def test_best_of_n_is_its_own_curve(finished: tuple[Evaluation, Path]) -> None:
    fresh = finished[0].fresh
    curve = fresh.curve
    assert curve is not None
    assert curve.arm == "best of 4"
    assert len(curve.guide) == 8  # four samples for each of two answers
    assert list(curve.guide) == sorted(curve.guide)


def test_the_first_segment_comes_before_the_end(finished: tuple[Evaluation, Path]) -> None:
    evaluation, directory = finished
    for record in records(directory, "STARS"):
        for result in record.results:
            assert 0 < result.usage.first_segment_s <= result.usage.duration_s
    latency = evaluation.fresh.arms["STARS"].latency
    assert latency.first_p50 < latency.p50
    whole = evaluation.fresh.arms["best of 4"].latency
    assert whole.first_p50 == pytest.approx(whole.p50, rel=0.01)


@pytest.mark.slow
def test_an_interrupted_run_gives_the_same_report(
    finished: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    """Two whole lines and a torn third are kept; everything else is generated again."""
    expected, directory = finished
    data = (directory / "answers.jsonl").read_bytes()
    lines = data.split(b"\n")
    (tmp_path / "answers.jsonl").write_bytes(b"\n".join(lines[:2]) + b"\n" + lines[2][:100])
    resumed = evaluate(small_recipe(), tmp_path)
    assert figures(resumed) == figures(expected, rounded=True)
    kept = (tmp_path / "answers.jsonl").read_bytes().split(b"\n")
    assert kept[:2] == lines[:2]
    assert len(kept) == len(lines)


def test_a_finished_run_generates_nothing(
    finished: tuple[Evaluation, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, directory = finished

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("generated again what is stored")

    monkeypatch.setattr(StarsEngine, "__init__", fail)
    monkeypatch.setattr(Likelihood, "_load", fail)
    monkeypatch.setattr(Judges, "_load", fail)
    before = (directory / "answers.jsonl").read_bytes()
    again = evaluate(small_recipe(), directory)
    assert again.fresh == expected.fresh  # with its times, which are stored
    assert (directory / "answers.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_changed_arm_is_generated_again(
    finished: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    shutil.copytree(finished[1], tmp_path, dirs_exist_ok=True)
    recipe = small_recipe()
    arms = {"vanilla": VanillaArm(), "blockwise": BlockwiseArm(m=3, segment_len=8)}
    changed = evaluate(recipe.replace(arms=arms), tmp_path)
    assert changed.fresh.arms["vanilla"].costs == finished[0].fresh.arms["vanilla"].costs
    assert changed.fresh.arms["blockwise"].segments.attempts_mean == 3


@pytest.mark.slow
def test_arms_are_chosen_on_tuning_prompts(tmp_path: Path) -> None:
    recipe = small_recipe(
        arms={
            "vanilla": VanillaArm(),
            "m 1": BlockwiseArm(m=1, segment_len=8),
            "m 4": BlockwiseArm(m=4, segment_len=8),
            "m 9": BlockwiseArm(m=9, segment_len=8),
        },
        choose={"blockwise": ("m 1", "m 4", "m 9")},
        judges={},  # the guide's own reward
        guards={"perplexity": (0, 9), "distinct_2": (0, 9), "tokens": (0, 9)},
        perplexity=False,
    )
    found = evaluate(recipe, tmp_path)
    assert found.chosen == {"blockwise": "m 4"}  # 9 drafts cost more than max_times=6
    assert list(found.fresh.arms) == ["vanilla", "m 4"]
    assert set(found.tuning.arms) == set(recipe.arms)
    tuning = {record.prompt for record in records(tmp_path, "m 4") if record.half == "tuning"}
    fresh = {record.prompt for record in records(tmp_path, "m 4") if record.half == "fresh"}
    assert tuning
    assert not tuning & fresh
    with pytest.raises(ConfigError, match=r"no candidate keeps its guards.*m 4: tokens.*Hint"):
        evaluate(recipe.replace(guards={"tokens": (8, 9)}), tmp_path)


def test_a_record_that_is_none_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"key": 1}\n')
    with pytest.raises(ConfigError, match="line 1 is not a record"):
        AnswerStore(path)


def test_guards_compare_with_the_reference(finished: tuple[Evaluation, Path]) -> None:
    plain = finished[0].fresh.arms["vanilla"]
    assert plain.guards_hold
    assert isinstance(plain, ArmFigures)
    assert set(finished[0].fresh.arms["STARS"].guards) == {
        "perplexity",
        "distinct_2",
        "tokens",
        "forced",
    }


@pytest.mark.slow
def test_the_tables_hold_every_arm(finished: tuple[Evaluation, Path], tmp_path: Path) -> None:
    evaluation, _ = finished
    page = write_reports(evaluation, tmp_path).read_text()
    rows = list(csv.DictReader((tmp_path / "arms.csv").read_text().splitlines()))
    assert [row["arm"] for row in rows] == list(evaluation.fresh.arms)
    assert float(rows[1]["times"]) == evaluation.fresh.arms["best of 2"].costs.times.value
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["fresh"]["arms"].keys() == evaluation.fresh.arms.keys()
    for name in evaluation.fresh.arms:
        assert f"<th>{name}</th>" in page
    assert "rejected drafts</summary>" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)  # self-contained
    assert page.count("<svg") >= 4


@pytest.mark.slow
def test_texts_are_escaped(finished: tuple[Evaluation, Path], tmp_path: Path) -> None:
    evaluation, _ = finished
    [first, *_] = evaluation.samples
    bad = first.replace(prompt="<script>alert(1)</script>")
    page = write_reports(evaluation.replace(samples=(bad,)), tmp_path).read_text()
    assert "<script" not in page


@pytest.mark.slow
def test_the_report_opens_in_a_browser(finished: tuple[Evaluation, Path], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium is installed")
    page = write_reports(finished[0], tmp_path)
    shown = subprocess.run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr
    assert "Is it small?" in shown.stdout
    assert math.isclose(shown.stdout.count("<svg"), page.read_text().count("<svg"))
