"""Prompts of an evaluation: files, columns, halves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stars_engine import ConfigError
from stars_engine.evaluation import PromptSet
from stars_engine.evaluation.prompts import read_halves


@pytest.mark.parametrize("bundled", ["reviews", "requests", "adversarial"])
def test_bundled_prompts_are_distinct_and_split(bundled: str) -> None:
    halves = read_halves(PromptSet(bundled=bundled, tuning=16, fresh=24))
    assert (len(halves.tuning), len(halves.fresh)) == (16, 24)
    assert not set(halves.tuning) & set(halves.fresh)
    again = read_halves(PromptSet(bundled=bundled, tuning=16, fresh=24))
    assert again == halves
    other = read_halves(PromptSet(bundled=bundled, tuning=16, fresh=24, seed=1))
    assert other != halves


def test_files_are_read_by_column(tmp_path: Path) -> None:
    rows = [("first, of two", "x"), ("second", "y"), ("second", "again")]
    jsonl = tmp_path / "p.jsonl"
    jsonl.write_text("".join(json.dumps({"question": q, "id": i}) + "\n" for q, i in rows))
    table = tmp_path / "p.csv"
    table.write_text('id,question\nx,"first, of two"\ny,second\nz,second\n')
    text = tmp_path / "p.txt"
    text.write_text("first, of two\r\n\nsecond\n")
    for path in (jsonl, table, text):
        source = PromptSet(file=str(path), column="question", tuning=0, fresh=2, seed=None)
        assert read_halves(source).fresh == ("first, of two", "second")


def test_dialogues_give_their_first_human_turn(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    dialogue = "\n\nHuman: How do I\nbake?\n\nAssistant: Slowly.\n\nHuman: Why?\n\nAssistant: So."
    path.write_text(json.dumps({"chosen": dialogue}) + "\n")
    source = PromptSet(file=str(path), column="chosen", form="dialogue", tuning=0, fresh=1)
    assert read_halves(source).fresh == ("How do I\nbake?",)


@pytest.mark.parametrize(
    ("content", "suffix", "message"),
    [
        ('{"text": "a"}\n', ".jsonl", "line 1 has no text in the column 'prompt'.*text.*Hint"),
        ("{\n", ".jsonl", "line 1 is not JSON"),
        ("a,b\n1,2\n", ".csv", "line 2 has no text in the column 'prompt'; its columns: a, b"),
        ("a\n", ".pdf", "use .jsonl, .csv, .tsv or .txt"),
        ("one\n", ".txt", "1 different prompts, and 0 tuning and 2 fresh prompts are wanted"),
    ],
)
def test_wrong_files_are_explained(tmp_path: Path, content: str, suffix: str, message: str) -> None:
    path = tmp_path / f"prompts{suffix}"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_halves(PromptSet(file=str(path), tuning=0, fresh=2))


def test_a_missing_file_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"gone\.txt: cannot be read: No such file"):
        read_halves(PromptSet(file="gone.txt", tuning=0, fresh=1))


def test_too_few_tuning_prompts_are_refused() -> None:
    with pytest.raises(ConfigError, match="tuning=4 is too few"):
        PromptSet(tuning=4)
