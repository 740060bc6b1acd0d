"""`stars compare`, `sweep` and `report`, run as a user runs them."""

from __future__ import annotations

import csv
import html
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from stars_engine import ConfigError, MissingExtraError, ModelLoadError
from stars_engine.cli.app import app
from stars_engine.cli.messages import messages
from tests.support.evaluation import SPEED
from tests.support.processes import COMMAND

RECIPE = """
name: small
title: Is it small?
prompts: {tuning: 8, fresh: 8}
sampling: {max_tokens: 12}
arms:
  vanilla: {kind: vanilla}
  blockwise: {kind: blockwise, m: 2, segment_len: 6}
guards: {perplexity: [0, 9], distinct_2: [0, 9], tokens: [0, 9], forced: 1}
perplexity: false
batch_size: 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a small recipe."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str) -> Result:
    found = CliRunner().invoke(app, args)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def rows(directory: Path) -> list[dict[str, str]]:
    """The table of arms, without figures of time and of drafts that were not needed."""
    found = csv.DictReader((directory / "arms.csv").read_text().splitlines())
    return [{key: value for key, value in row.items() if not SPEED.search(key)} for row in found]


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("tone=json:typo", ["--judge tone=json:typo", "no attribute 'typo'"]),
        ("tone=./nowhere", ["--judge tone=./nowhere", "no such directory"]),
    ],
)
def test_judges_of_options_are_checked_first(folder: Path, judge: str, words: list[str]) -> None:
    with pytest.raises(ModelLoadError) as found:
        run("compare", "--recipe", "small.yaml", "--judge", judge)
    said = messages._translated(str(found.value))
    assert all(word in said for word in words)
    assert not (folder / "evaluations").exists()


def test_judges_and_rewards_of_a_recipe_are_checked_before_a_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    monkeypatch.setattr("stars_engine.engine.handle._load_model", loads.append)
    judged = yaml.safe_load(RECIPE) | {"judges": {"tone": "json:typo"}}
    steered = yaml.safe_load(RECIPE)
    steered["arms"]["other"] = {"kind": "stars", "reward": "json:typo"}
    for number, recipe in enumerate((judged, steered)):
        (folder / "wrong.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(ModelLoadError, match="json:typo"):
            run("compare", "--recipe", "wrong.yaml", "--out", str(number))
    assert loads == []


@pytest.mark.slow
def test_a_killed_comparison_goes_on(folder: Path) -> None:
    whole = run("compare", "--recipe", "small.yaml", "--out", "whole")
    assert "report written to whole/report.html" in whole.stderr
    assert "blockwise" in whole.stdout
    with subprocess.Popen(
        [*COMMAND, "compare", "--recipe", "small.yaml", "--out", "killed"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        answers = folder / "killed" / "answers.jsonl"
        deadline = time.monotonic() + 120
        while not (answers.exists() and answers.read_bytes().count(b"\n") >= 4):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "killed" / "report.html").exists()
    assert "report written" in run("report", "killed").stderr
    assert len(rows(folder / "killed")) == len(rows(folder / "whole")) == 2
    for own, other in zip(rows(folder / "killed"), rows(folder / "whole"), strict=True):
        for name, value in other.items():
            try:
                expected: object = pytest.approx(float(value), rel=1e-4, abs=1e-4, nan_ok=True)
                assert float(own[name]) == expected, name
            except ValueError:
                assert own[name] == value


@pytest.mark.slow
def test_the_config_of_a_report_runs_the_same_evaluation(folder: Path) -> None:
    run("compare", "--recipe", "small.yaml", "--out", "one")
    first = rows(folder / "one")
    page = (folder / "one" / "report.html").read_text()
    [block] = re.findall(r"<summary>recipe.yaml</summary><pre>(.*?)</pre>", page, re.DOTALL)
    (folder / "again.yaml").write_text(html.unescape(block))
    again = run("compare", "--recipe", "again.yaml", "--out", "one")
    assert "to do" not in again.stderr  # nothing was generated
    assert "all 16 answers and their scores were stored; no model was loaded" in again.stderr
    assert rows(folder / "one") == first


@pytest.mark.slow
def test_a_report_shows_trust_as_advice_and_tables(folder: Path) -> None:
    recipe = yaml.safe_load(RECIPE) | {"trust": {"num_prompts": 4, "num_answers": 4}}
    del recipe["arms"]["blockwise"]
    (folder / "trust.yaml").write_text(yaml.safe_dump(recipe))
    run("compare", "--recipe", "trust.yaml", "--out", "out")
    page = (folder / "out" / "report.html").read_text()
    assert page.count("<pre") == 1  # the recipe
    assert "<ul><li>" in page
    assert "<th>segment_len</th><th class='number'>advantage" in page
    assert "&lt;th" not in page


@pytest.mark.slow
def test_a_sweep_reports_the_chosen_combination(folder: Path) -> None:
    run("sweep", "segment_len=4,6", "schedule.budget=1.5", "--recipe", "small.yaml", "--out", "out")
    report = json.loads((folder / "out" / "report.json").read_text())
    arms = ["segment_len 4, budget 1.5", "segment_len 6, budget 1.5"]
    rewards = [report["tuning"]["arms"][a]["judges"]["guide"]["reward"]["value"] for a in arms]
    best = arms[rewards.index(max(rewards))]
    assert report["chosen"] == {"STARS": best}
    assert list(report["fresh"]["arms"]) == ["vanilla", best]
    assert list(folder.glob("out/thresholds-*.json"))


def test_recipes_are_listed() -> None:
    shown = run("compare", "--list").stdout
    assert "best-of-n" in shown
    assert "quick" in shown


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--preset", "quik"], "unknown recipe 'quik'"),
        (["--judge", "vader"], "NAME=REWARD"),
        (["--fresh", "4000"], "96 different prompts"),
        (["--no-imports", "--judge", "mine=my.module:judge"], "runs Python code"),
        (["--prompts", "none.jsonl"], "cannot be read"),
    ],
)
def test_wrong_options_are_explained(
    args: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["compare", *args])
    assert found.exit_code != 0
    assert words in f"{found.output} {found.exception}"
    assert isinstance(found.exception, SystemExit | ConfigError)


def test_a_folder_without_an_evaluation_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        run("report", str(tmp_path))


@pytest.mark.parametrize("package", ["evalica", "scipy", "matplotlib", "jinja2"])
def test_a_missing_package_names_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = f"'{package}' is not installed. Hint: run pip install -e '.[eval]'"
    with pytest.raises(MissingExtraError, match=re.escape(message)):
        run("compare", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
