"""Prompt files with ids and conversations, JSON output, resumed runs, and exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stars_engine import AlignmentError, Chat, ModelLoadError, PromptError, StarsResult
from stars_engine.cli import answers, app
from stars_engine.cli.prompts import PromptRecord, read_records
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.trace import read_jsonl, write_jsonl

CONFIG = StarsConfig(sampling=SamplingParams(max_tokens=8, seed=3))
RECORDS = [PromptRecord("The plot", "a"), PromptRecord("The cast", 7), PromptRecord("The end")]


def generate(capsys: pytest.CaptureFixture, *, resume: bool = False, trace: Path) -> list:
    answers.run_generate(RECORDS, CONFIG, as_json=True, trace=trace, resume=resume)
    return [StarsResult.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]


def test_records_hold_prompts_conversations_and_ids(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "A", "id": "x", "split": "train"}\n'
        '{"messages": [{"role": "user", "content": "B"}], "id": 2}\n'
        '{"prompt": "C"}\n'
    )
    found = read_records(path)
    assert found == [
        PromptRecord("A", "x"),
        PromptRecord(Chat([{"role": "user", "content": "B"}]), 2),
        PromptRecord("C", None),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "A", "messages": []}', "not a prompt"),
        ('{"prompt": 1}', "prompt is not text"),
        ('{"prompt": "A", "id": [1]}', r"id \[1\] is not allowed"),
        ('{"messages": [{"role": "nobody", "content": "B"}]}', "role"),
        ("not json", "not a prompt"),
    ],
)
def test_a_bad_record_names_its_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "A"}}\n{line}\n')
    with pytest.raises(PromptError, match=f"line 2: .*{words}"):
        read_records(path)


@pytest.mark.slow
def test_json_lines_hold_the_prompt_its_id_and_the_attempts(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    answers.run_generate(RECORDS, CONFIG, as_json=True, trace=trace)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], line["id"]) for line in lines] == [(r.prompt, r.id) for r in RECORDS]
    for line in lines:
        for segment in line["segments"]:
            assert segment["num_attempts"] == len(segment["attempts"]) > 0
            assert segment["forced"] is (segment["verdict"] == "forced")
    assert [json.loads(line) for line in trace.read_text().splitlines()] == lines


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(
    capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    trace, cut = tmp_path / "trace.jsonl", tmp_path / "cut.jsonl"
    whole = generate(capsys, trace=trace)
    first, *_ = read_jsonl(trace)
    write_jsonl([first], cut)
    kept = first.usage.duration_s
    resumed = generate(capsys, resume=True, trace=cut)
    assert [(r.id, r.prompt_index, r.text) for r in resumed] == [
        (r.id, r.prompt_index, r.text) for r in whole
    ]
    assert resumed[0].usage.duration_s == kept  # it was not generated again
    assert list(read_jsonl(cut)) == resumed


@pytest.mark.slow
def test_a_finished_run_loads_no_model(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace.jsonl"
    whole = generate(capsys, trace=trace)
    before = trace.read_bytes()
    monkeypatch.setattr(answers, "loaded", None)
    answers.run_generate(RECORDS, CONFIG, as_json=True, trace=trace, resume=True)
    shown = capsys.readouterr()
    assert "all 3 answers are in" in shown.err
    assert [StarsResult.model_validate_json(line) for line in shown.out.splitlines()] == whole
    assert answers.run_generate(RECORDS, CONFIG, as_json=False, trace=trace, resume=True) == 0
    assert [result.text for result in whole] == [
        part.removeprefix(record.shown)
        for part, record in zip(capsys.readouterr().out.split("\n\n"), RECORDS, strict=False)
    ]
    assert trace.read_bytes() == before


@pytest.mark.slow
def test_answers_beyond_n_are_not_counted(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """A trace of two answers per prompt is resumed with one each."""
    trace = tmp_path / "trace.jsonl"
    two = CONFIG.replace(sampling=CONFIG.sampling.replace(n=2))
    answers.run_generate(RECORDS[:1], two, as_json=True, trace=trace)
    capsys.readouterr()
    answers.run_generate(RECORDS[:2], CONFIG, as_json=True, trace=trace, resume=True)
    shown = capsys.readouterr()
    assert "1 of 2 answers are in" in shown.err
    assert len(shown.out.splitlines()) == 2
    assert len(list(read_jsonl(trace))) == 3


@pytest.mark.slow
def test_other_prompts_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trace = tmp_path / "trace.jsonl"
    generate(capsys, trace=trace)
    other = [PromptRecord("Another", "a"), *RECORDS[1:]]
    with pytest.raises(Exception, match="answer to another prompt than number 1"):
        answers.run_generate(other, CONFIG, as_json=True, trace=trace, resume=True)
    assert len(list(read_jsonl(trace))) == 3


@pytest.mark.slow
def test_other_settings_cannot_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trace = tmp_path / "trace.jsonl"
    generate(capsys, trace=trace)

    def resume(config: StarsConfig) -> int:
        answers.run_generate(RECORDS, config, as_json=True, trace=trace, resume=True)
        return len(list(read_jsonl(trace)))

    for changed in (
        CONFIG.replace(sampling=CONFIG.sampling.replace(seed=4)),
        CONFIG.replace(align=AlignParams(beta=0.5)),
    ):
        with pytest.raises(Exception, match="generated with other settings"):
            resume(changed)
    faster = CONFIG.replace(align=AlignParams(num_candidates=2))
    assert resume(faster) == 3
    assert resume(CONFIG.replace(sampling=CONFIG.sampling.replace(n=2))) == 6


@pytest.mark.slow
def test_a_run_that_cannot_load_its_models_keeps_the_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trace = tmp_path / "trace.jsonl"
    whole = generate(capsys, trace=trace)
    missing = StarsConfig(model="stars:embedded-lm", reward="./nowhere", align="safe")
    with pytest.raises(ModelLoadError):
        answers.run_generate(RECORDS, missing, as_json=True, trace=trace)
    assert list(read_jsonl(trace)) == whole


@pytest.mark.slow
def test_refused_answers_have_their_own_status(capsys: pytest.CaptureFixture) -> None:
    align = AlignParams(
        schedule={"kind": "constant", "value": 99}, max_attempts=1, on_exhausted="stop"
    )
    refusing = CONFIG.replace(align=align)
    args = {"as_json": False, "trace": None}
    assert answers.run_generate(RECORDS[:2], refusing, **args) == 2
    assert answers.run_generate(RECORDS[:1], CONFIG, **args) == 0
    assert app._status_of(AlignmentError("none was accepted")) == app.REFUSED == 3
    assert app._status_of(PromptError("no")) == app.ERROR
    capsys.readouterr()
