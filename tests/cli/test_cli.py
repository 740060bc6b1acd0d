"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stars_engine import (
    AlignParams,
    PromptError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
)
from stars_engine.cli.app import app
from stars_engine.cli.prompts import read_prompts
from stars_engine.trace import read_jsonl
from tests.support.processes import COMMAND, run_python, stars


@pytest.mark.slow
def test_demo_shows_both_answers_and_the_gain() -> None:
    run = stars("demo", "--samples", "2")
    assert run.returncode == 0, run.stderr
    assert run.stderr.startswith("loading stars:embedded-lm")
    rewards = {
        arm: float(re.search(rf"│ {arm}\s*│\s*([+-]\d+\.\d+)", run.stdout)[1])
        for arm in ("plain", "STARS")
    }
    assert rewards["STARS"] > rewards["plain"]
    gain = float(re.search(r"plain sampling: ([+-]\d+\.\d+)", run.stdout.split("gained")[1])[1])
    assert gain == pytest.approx(rewards["STARS"] - rewards["plain"], abs=0.011)
    kept = [line for line in run.stdout.splitlines() if "≥" in line]
    assert kept
    assert all(re.search(r"\(attempt \d+\)$", line) for line in kept)
    assert "tokens" in run.stdout
    assert "Wall time" in run.stdout


@pytest.mark.slow
def test_generate_json_equals_the_results_of_the_engine(
    engine: StarsEngine, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    args = ["This movie", "--seed", "7", "--max-tokens", "24", "-n", "2"]
    run = stars("generate", *args, "--json", "--trace", str(trace))
    assert run.returncode == 0, run.stderr
    results = [StarsResult.model_validate_json(line) for line in run.stdout.splitlines()]
    expected = engine.generate("This movie", sampling=SamplingParams(seed=7, max_tokens=24, n=2))
    assert [r.text for r in results] == [r.text for r in expected]
    assert list(read_jsonl(trace)) == results


@pytest.mark.slow
def test_alternatives_of_a_config_file(tmp_path: Path) -> None:
    (tmp_path / "stars.yaml").write_text(
        "schema_version: 1\n"
        "align:\n"
        "  schedule: {kind: none}\n"
        "  segment_len: 8\n"
        "  alternatives:\n"
        "    - {opening: ' is wonderful', share: 1.0}\n"
    )
    args = ["This movie", "--seed", "7", "--max-tokens", "16", "--json"]
    run = stars("generate", *args, "--config", str(tmp_path / "stars.yaml"))
    assert run.returncode == 0, run.stderr
    result = StarsResult.model_validate_json(run.stdout)
    assert result.text.startswith(" is wonderful")
    assert [segment.alternative for segment in result.segments] == [0, None]


@pytest.mark.slow
def test_one_prompt_streams_its_text(engine: StarsEngine) -> None:
    run = stars("generate", "This movie", "--seed", "7", "--max-tokens", "24")
    [expected] = engine.generate("This movie", sampling=SamplingParams(seed=7, max_tokens=24))
    assert run.stdout == expected.text + "\n"
    assert "seed 7" in run.stderr


@pytest.mark.slow
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
    positions = [runs[0].stdout.index(prompt) for prompt in prompts[:2]]
    assert positions == sorted(positions)


@pytest.mark.slow
def test_options_override_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    align = AlignParams(schedule={"kind": "constant", "value": -99}, segment_len=4)
    config = StarsConfig(align=align, sampling=SamplingParams(seed=2, max_tokens=12))
    config.to_file(path)
    run = stars("generate", "A", "--config", str(path), "--json", "--beta", "0.5")
    result = StarsResult.model_validate_json(run.stdout)
    assert {segment.threshold for segment in result.segments} == {-99.0}
    assert len(result.segments[0].token_ids) == 4
    assert result.seed == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--beta", "-1"], ["--beta", "-1", ">= 0"]),
        (["--temperature", "-1"], ["--temperature: -1.0", ". --temperature: temperature of"]),
        (["--seed", "-1"], ["--seed: -1", "< 9223372036854775808. --seed", "without one, a new"]),
        (["--schedule", "nowhere.yaml"], ["No such file or directory. Hint: check the path"]),
        (["--on-exhausted", "hope"], ["'hope'", "'best'"]),
        (["--threshold", "1", "--target", "2"], ["--threshold", "--target"]),
        (["--initial", "1"], ["--target"]),
        (["--model", "./nowhere", "--reward", "./x", "--threshold", "0"], ["no such directory"]),
        (
            ["--model", "models/x", "--reward", "./x", "--threshold", "0"],
            ["--reward ./x", "no such directory"],
        ),
        (
            ["--model", "stars:embedded-lm", "--reward", "antigravity.no:f", "--threshold", "0"],
            ["antigravity.no:f", "cannot be imported", "Hint"],
        ),
        (["--model", "./a", "--reward", "./b"], ["--reward ./b", "no such directory"]),
        (["--model", "./a", "--reward", "json.dumps"], ["--reward json.dumps", "'json:dumps'"]),
        (["--initial-weight", "0.5"], ["--target"]),
        (["--top-k", "-1"], ["--top-k", "-1", ">= 1"]),
        (["--top-k", "0"], ["--top-k", "0", ">= 1", "all"]),
        (["--terminal", "soon"], ["terminal", "'soon'", "'target'"]),
        (["--trace", "/nowhere/trace.jsonl"], ["/nowhere/trace.jsonl", "does not exist", "Hint"]),
        (["--prompts", "nowhere.txt"], ["a prompt or --prompts FILE, not both"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "cannot be read"]),
        (["--max-tokens", "600"], ["512", "--max-tokens"]),
        (["--resume"], ["--trace"]),
        (["--reward", "json:dumps"], ["--model is required", "Hint", "--model stars:embedded-lm"]),
        (["--model", "a/b"], ["--reward is required with --model", "Hint: for example, --reward"]),
    ],
)
def test_user_errors_give_one_clear_message(args: list[str], words: list[str]) -> None:
    run = stars("generate", "This movie", "--seed", "1", *args)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    message = " ".join(run.stderr.split())
    for word in words:
        assert word in message, run.stderr


@pytest.mark.slow
def test_a_failing_reward_module_gives_one_message(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    args = ["--model", "stars:embedded-lm", "--reward", "broken:f", "--threshold", "0"]
    run = stars("generate", "A", *args, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 2  # what is being loaded, and the error
    for word in ("--reward broken:f", "ZeroDivisionError", "Hint"):
        assert word in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "commands"),
    [
        ("cp1252", ["prompt"]),
        ("cp1252", ["fallback"]),
        ("utf-8", ["prompt", "fallback"]),
        ("ascii", ["demo", "prompt", "fallback"]),
    ],
)
def test_a_terminal_that_cannot_encode_a_character(encoding: str, commands: list[str]) -> None:
    code = (  # as PYTHONIOENCODING does
        "import sys\n"
        f"sys.stdout.reconfigure(encoding={encoding!r})\n"
        f"sys.stderr.reconfigure(encoding={encoding!r})\n"
        "from stars_engine.cli import main\n"
        "main()\n"
    )
    short = ["--max-tokens", "4", "--seed", "1"]
    falling_back = ["--on-exhausted", "fallback", "--fallback-text", "é🙂", "--threshold", "9"]
    arguments = {
        "demo": ["demo", "--samples", "1", "A 🙂"],
        "prompt": ["generate", "A 🙂", "-n", "2", *short],
        "fallback": ["generate", "A", *falling_back, "--max-attempts", "1", "--json", *short],
    }
    for command in commands:
        run = run_python(code, *arguments[command], env={**os.environ, "NO_COLOR": "1"})
        assert run.returncode == (3 if command == "fallback" else 0), run.stderr
        assert "Traceback" not in run.stderr
        if command == "fallback":
            assert StarsResult.model_validate_json(run.stdout).text.endswith("é🙂")


@pytest.mark.slow
def test_an_empty_stdin_is_an_error() -> None:
    run = stars("generate", stdin="\n")
    assert run.returncode == 2
    assert "holds no prompt" in run.stderr


@pytest.mark.slow
def test_a_callable_as_reward(tmp_path: Path) -> None:
    (tmp_path / "brevity.py").write_text("def short(prompt, completion): return -len(completion)\n")
    # A script, as the installed command is: Python does not look in the current directory for it.
    script = tmp_path / "bin" / "stars"
    script.parent.mkdir()
    script.write_text("from stars_engine.cli import main\nmain()\n")
    args = ["generate", "A", "--model", "stars:embedded-lm", "--reward", "brevity:short"]
    args += ["--threshold", "-500", "--max-tokens", "8", "--seed", "1", "--json"]
    run = run_python(script.read_text(), *args, script=script, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    result = StarsResult.model_validate_json(run.stdout)
    assert result.reward == -len(result.text)


@pytest.mark.slow
def test_thresholds_of_a_file_apply_to_its_models_only(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    StarsConfig(model="a/b", reward="c/d", align=AlignParams(schedule={"kind": "none"})).to_file(
        path
    )
    for option in ("--model", "--reward"):
        run = stars("generate", "A", "--config", str(path), option, "x/y")
        assert run.returncode == 2
        assert "thresholds belong to one pair" in run.stderr
        assert "--threshold" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("option", "name"), [("--out", "s.yaml"), ("--report", "s.html")])
def test_output_paths_are_checked_before_the_pilot(tmp_path: Path, option: str, name: str) -> None:
    args = ["calibrate", "--max-tokens", "8", "--segment-len", "8", option]
    run = stars(*args, str(tmp_path / "nowhere" / name), cwd=tmp_path)
    assert run.returncode == 2
    assert "does not exist. Hint: create it" in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_calibration_reports_that_it_resumes(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A film\n" * 8)
    args = ["calibrate", "--max-tokens", "8", "--segment-len", "8", "--no-verify"]
    args += ["--prompts", "prompts.txt", "--out", "s.yaml"]
    script = (
        "from stars_engine.calibration.checkpoint import StageCheckpoint\n"
        "from stars_engine.cli import main\n"
        "StageCheckpoint.discard = lambda _: None  # as if interrupted after the last stage\n"
        "main()\n"
    )
    first = run_python(script, *args, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "Resuming" not in first.stderr
    again = stars(*args, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Resuming the calibration after 1 of 1 stages from s.yaml.partial" in again.stderr
    assert not (tmp_path / "s.yaml.partial").exists()


@pytest.mark.slow
def test_messages_are_not_wrapped_without_a_terminal() -> None:
    run = stars("generate", "A", "--beta", "-1", columns=40)
    assert run.stderr.count("\n") == 1


@pytest.mark.slow
def test_without_torch_the_hint_names_the_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from stars_engine.cli import main\n"
        "codes = []\n"
        "for sys.argv[1:] in (['demo'], ['generate', 'A'], ['doctor']):\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        codes.append(end.code)\n"
        "print(codes)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.endswith("\n[2, 2, 2]\n")  # after the introduction of the demo
    assert run.stderr.count("pip install -e '.[local]'") == 3
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_ctrl_c_exits_with_130(tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    (tmp_path / "slow.py").write_text(
        f"fifos = [{str(started)!r}]\n"
        "def reward(prompt, completion):\n"
        "    if fifos:\n"
        "        open(fifos.pop(), 'w').close()\n"
        "    return 0.0\n"
    )
    args = ["generate", "It was", "-n", "100", "--max-tokens", "400", "--json"]
    args += ["--model", "stars:embedded-lm", "--reward", "slow:reward", "--threshold", "0"]
    run = subprocess.Popen(
        [*COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with started.open():  # blocks until the first reward is computed
        run.send_signal(signal.SIGINT)
    _, messages = run.communicate(timeout=60)
    assert run.returncode == 130
    assert messages.splitlines()[-1] == "interrupted"
    assert "Traceback" not in messages


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error() -> None:
    args = ["generate", "It was", "--max-tokens", "48", "--seed", "1", "--quiet"]
    run = subprocess.Popen([*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    with run.stderr:
        assert run.stderr.read() == b""
    assert run.wait(timeout=60) == 1


def test_only_newlines_separate_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffOne\u2028line\x85of\ftext\r\n\nAnother\n".encode())
    assert read_prompts(path) == ["One\u2028line\x85of\ftext", "Another"]


def test_errors_in_prompt_files_name_the_line(tmp_path: Path) -> None:
    records = tmp_path / "prompts.jsonl"
    records.write_text('{"prompt": "A"}\n\n{"question": "B"}\n')
    with pytest.raises(PromptError, match="line 3"):
        read_prompts(records)
    latin = tmp_path / "prompts.txt"
    latin.write_bytes("A\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(PromptError, match=r"line 2.*save the file as UTF-8"):
        read_prompts(latin)
    run = stars("generate", stdin=b"\xff")
    assert run.returncode == 2
    assert "stdin, line 1: not UTF-8" in run.stderr


@pytest.mark.slow
def test_doctor_names_versions_and_models() -> None:
    run = stars("doctor")
    assert run.returncode == 0, run.stderr
    for word in (
        "torch",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        "shared prefix",
        "cpu",
    ):
        assert word in run.stdout
    for word in ("placement", "context"):
        assert run.stdout.count(word) == 2


@pytest.mark.slow
def test_options_for_segment_ends_and_lookahead() -> None:
    common = ["generate", "The story", "--json", "--seed", "1", "--max-tokens", "60"]
    run = stars(*common, "--segment-end", "sentence", "--segment-len", "30")
    assert run.returncode == 0, run.stderr
    texts = [segment.text for segment in StarsResult.model_validate_json(run.stdout).segments]
    assert any(text.endswith(".") for text in texts[:-1])
    run = stars(*common, "--lookahead", "5")
    assert StarsResult.model_validate_json(run.stdout).usage.num_lookahead_tokens >= 5
    run = stars(*common, "--segment-end", "sentence", "--lookahead", "5")
    assert run.returncode == 2
    assert "--lookahead 5 does not support --segment-end sentence" in run.stderr


def test_help_and_version() -> None:
    runner = CliRunner()
    assert "stars-engine" in runner.invoke(app, ["--version"]).stdout
    for command in ("demo", "generate", "doctor"):
        assert runner.invoke(app, [command, "--help"]).exit_code == 0
    shown = " ".join(runner.invoke(app, ["generate", "--help"]).stdout.split())
    assert f"Default: {SamplingParams().temperature}." in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "2", "--target-acceptance", "0.3"], "--budget and --target-acceptance are"),
        (["--prompts", "prompts.txt"], "2 of 3 prompts are for the pilot"),
    ],
)
def test_calibrate_checks_its_options_before_models_are_loaded(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("A\nB\nC\n")
    monkeypatch.setattr("stars_engine.cli.calibrate.loaded", None)  # would fail otherwise
    run = CliRunner().invoke(app, ["calibrate", *options])
    assert run.exit_code == 2
    assert said in " ".join(re.sub(r"[│╭╰─╮╯]", " ", run.stderr).split())
