"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stars_engine import AlignParams, SamplingParams, StarsConfig, StarsEngine, StarsResult
from stars_engine.cli.app import app
from stars_engine.trace import read_jsonl


def stars(*args: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from stars_engine.cli import main; main()", *args]
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, env=env, cwd=cwd
    )


def test_demo_shows_both_arms_and_the_gain() -> None:
    run = stars("demo", "--samples", "2")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    rewards = {
        arm: float(re.search(rf"{arm}\s*│\s*([+-]\d+\.\d+)", run.stdout)[1])
        for arm in ("plain sampling", "STARS")
    }
    assert rewards["STARS"] > rewards["plain sampling"]
    gain = float(re.search(r"plain sampling: ([+-]\d+\.\d+)", run.stdout.split("gained")[1])[1])
    assert gain == pytest.approx(rewards["STARS"] - rewards["plain sampling"], abs=0.011)
    assert "attempt" in run.stdout
    assert "Wall time" in run.stdout


def test_generate_json_is_what_the_engine_gives(engine: StarsEngine, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    args = ["This movie", "--seed", "7", "--max-tokens", "24", "-n", "2"]
    run = stars("generate", *args, "--json", "--trace", str(trace))
    assert run.returncode == 0, run.stderr
    results = [StarsResult.model_validate_json(line) for line in run.stdout.splitlines()]
    expected = engine.generate("This movie", sampling=SamplingParams(seed=7, max_tokens=24, n=2))
    assert [r.text for r in results] == [r.text for r in expected]
    assert list(read_jsonl(trace)) == results


def test_one_prompt_streams_its_text(engine: StarsEngine) -> None:
    run = stars("generate", "This movie", "--seed", "7", "--max-tokens", "24")
    [expected] = engine.generate("This movie", sampling=SamplingParams(seed=7, max_tokens=24))
    assert run.stdout == expected.text + "\n"
    assert "seed 7" in run.stderr


def test_prompts_from_stdin_and_files_keep_their_order(tmp_path: Path) -> None:
    prompts = ["This movie", "The acting in it", "I"]
    lines = tmp_path / "prompts.txt"
    lines.write_text("\n".join(prompts) + "\n")
    records = tmp_path / "prompts.jsonl"
    records.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    common = ["generate", "--seed", "1", "--max-tokens", "16"]
    runs = [
        stars(*common, stdin=lines.read_text()),
        stars(*common, "--prompts", str(lines)),
        stars(*common, "--prompts", str(records)),
    ]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout
    places = [runs[0].stdout.index(prompt) for prompt in prompts[:2]]
    assert places == sorted(places)


def test_a_config_file_and_options_over_it(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    align = AlignParams(schedule={"kind": "constant", "value": -99}, segment_len=4)
    config = StarsConfig(align=align, sampling=SamplingParams(seed=2, max_tokens=12))
    config.to_file(path)
    run = stars("generate", "A", "--config", str(path), "--json", "--beta", "0.5")
    result = StarsResult.model_validate_json(run.stdout)
    assert {segment.threshold for segment in result.segments} == {-99.0}
    assert len(result.segments[0].token_ids) == 4
    assert result.seed == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--beta", "-1"], ["beta", "-1", ">= 0"]),
        (["--on-exhausted", "hope"], ["'hope'", "'best'"]),
        (["--threshold", "1", "--target", "2"], ["--threshold", "--target"]),
        (["--initial", "1"], ["--target"]),
        (["--model", "./nowhere", "--reward", "./x", "--threshold", "0"], ["no such directory"]),
        (["--model", "a/b"], ["reward is required"]),
        (["--prompts", "nowhere.txt"], ["not both"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["--max-tokens", "600"], ["512", "max_tokens"]),
        (["--threshold", "99", "--on-exhausted", "raise"], ["20 attempts", "Cure"]),
    ],
)
def test_mistakes_end_in_one_clear_message(args: list[str], words: list[str]) -> None:
    run = stars("generate", "This movie", "--seed", "1", *args)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    message = " ".join(run.stderr.split())
    for word in words:
        assert word in message, run.stderr


def test_an_empty_stdin_is_a_mistake() -> None:
    run = stars("generate", stdin="\n")
    assert run.returncode == 2
    assert "holds no prompt" in run.stderr


def test_a_callable_as_reward(tmp_path: Path) -> None:
    (tmp_path / "brevity.py").write_text("def short(prompt, completion): return -len(completion)\n")
    command = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, '.'); from stars_engine.cli import main; main()",
        *("generate", "A", "--model", "stars:embedded-lm", "--reward", "brevity:short"),
        *("--threshold", "-500", "--max-tokens", "8", "--seed", "1", "--json"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    result = StarsResult.model_validate_json(run.stdout)
    assert result.reward == -len(result.text)


def test_doctor_names_versions_and_models() -> None:
    run = stars("doctor")
    assert run.returncode == 0, run.stderr
    for word in ("torch", "LlamaForCausalLM", "LlamaForSequenceClassification", "kv cache", "cpu"):
        assert word in run.stdout


def test_help_and_version() -> None:
    runner = CliRunner()
    assert "stars-engine" in runner.invoke(app, ["--version"]).stdout
    for command in ("demo", "generate", "doctor"):
        assert runner.invoke(app, [command, "--help"]).exit_code == 0
