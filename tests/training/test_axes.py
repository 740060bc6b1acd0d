"""Prompts, guide and judge of an axis, from preference pairs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from training import axes
from training.axes import Pair, accuracy, fit, part_of, read_pairs


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def dialogue(answer: str) -> str:
    return f"\n\nHuman: first?\n\nAssistant: well\n\nHuman: more?\n\nAssistant: {answer}"


def test_harmless_pairs_are_the_last_answers_to_the_first_turn(tmp_path: Path) -> None:
    rows = [
        {"chosen": dialogue("no, sorry"), "rejected": dialogue("sure")},
        {"chosen": dialogue("same"), "rejected": dialogue("same")},
    ]
    write_rows(tmp_path / "data" / "hh-rlhf" / "harmless-base.jsonl.gz", rows)
    assert read_pairs(tmp_path, "harmless") == [Pair("first?", "no, sorry", "sure")]


def test_parts_depend_on_the_prompt_alone() -> None:
    prompts = [f"prompt {index}" for index in range(2000)]
    parts = [part_of(prompt) for prompt in prompts]
    assert parts == [part_of(f" {prompt.upper()} ") for prompt in prompts]
    shares = [parts.count(part) / 2000 for part in ("guide", "judge", "evaluation")]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


def test_a_model_ranks_pairs_like_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Pair("x", f"kind good words {n}", f"rude bad words {n}") for n in range(6)]
    model = fit(pairs)
    assert accuracy(model, [Pair("y", "good words", "bad words")]) == 1
    assert accuracy(model, [Pair("y", "bad", "good"), Pair("y", "words", "words")]) == 0.25
    for role in ("guide", "judge"):
        model.save(tmp_path / f"{role}.npz")
    monkeypatch.setenv("STARS_AXIS", str(tmp_path))
    axes._model.cache_clear()
    assert axes.guide("", "good") == pytest.approx(axes.judge([""], ["good"])[0])
    axes._model.cache_clear()
