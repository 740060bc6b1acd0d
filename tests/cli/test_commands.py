"""The list of commands, verbosity, hints in options, and the commands init, show and doctor."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from stars_engine import SamplingParams, StarsConfig, StarsEngine
from stars_engine.cli.app import COMMANDS, app
from stars_engine.cli.hints import in_options
from stars_engine.cli.lazy import LazyCommand
from stars_engine.cli.messages import Messages, messages
from stars_engine.errors import ConfigError
from stars_engine.trace import write_jsonl
from tests.support.processes import stars

OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("max_attempts", "beta", "on_exhausted", "top_k", "stop", "lookahead")
}


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_a_command_in_the_list_is_the_command(entry: object) -> None:
    real = LazyCommand(entry, None).real()
    first = real.help.split("\n\n")[0].replace("\n", " ").strip()
    assert first.startswith(entry.summary)
    runner = CliRunner()
    for flag in ("-h", "--help"):
        run = runner.invoke(app, [entry.name, flag])
        assert run.exit_code == 0
        assert "--quiet" in run.stdout


def test_the_list_of_commands_imports_no_command() -> None:
    code = (
        "import sys; from stars_engine.cli import main\n"
        "sys.argv = ['stars', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_list_of_commands_costs_little_processor_time() -> None:
    command = [sys.executable, "-m", "stars_engine", "--help"]
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.4


@pytest.mark.parametrize(
    ("python", "command_line"),
    [
        ("set on_exhausted='best'", "set --on-exhausted best"),
        ("raise max_attempts or beta", "raise --max-attempts or --beta"),
        ("`top_k` is not allowed", "--top-k is not allowed"),
        ("a = exp((r - threshold) / beta)", "a = exp((r - threshold) / beta)"),
        ("they stop at a file beta.yaml", "they stop at a file beta.yaml"),
        ("AlignParams: beta: -1", "--beta: -1"),
        ("or use AutoSchedule()", "or use --preset best"),
        ("lookahead=0 works", "--lookahead 0 works"),
    ],
)
def test_errors_name_options(python: str, command_line: str) -> None:
    assert in_options(python, OPTIONS) == command_line
    assert in_options(python, {}) == python


def test_quiet_silences_all_but_errors(capsys: pytest.CaptureFixture) -> None:
    console = Messages()
    console.set_verbosity(0, quiet=True)
    console.say("a message")
    console.say_error(ValueError("an error"))
    assert capsys.readouterr().err == "error: an error\n"


@pytest.mark.parametrize("name", ["stars_engine", "stars_engine.cli"])
def test_python_m_is_the_command(tmp_path: Path, name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", name, "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert run.stdout.startswith("stars-engine ")


@pytest.mark.parametrize(
    ("options", "schedule", "on_exhausted"),
    [
        (["--model", "a/b", "--reward", "m:f"], "auto", "best"),
        (["--model", "a/b", "--reward", "m:f", "--preset", "safe"], "auto", "stop"),
    ],
)
def test_init_writes_a_file_that_can_be_read(
    tmp_path: Path, options: list[str], schedule: str, on_exhausted: str
) -> None:
    path = tmp_path / "stars.yaml"
    run = CliRunner().invoke(app, ["init", "--yes", *options, "--out", str(path)])
    assert run.exit_code == 0, run.output
    config = StarsConfig.from_file(path)
    assert config.model.name_or_path == "a/b"
    assert config.reward.function == "m:f"
    assert config.align.schedule.kind == schedule
    assert config.align.on_exhausted == on_exhausted
    comments = [line for line in path.read_text().splitlines() if line.lstrip().startswith("#")]
    assert len(comments) > 20
    assert "None" not in " ".join(comments)  # YAML writes null


def test_init_asks(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    said = "org/model\norg/reward\nsave\nsafe\n64\n"
    run = CliRunner().invoke(app, ["init", "--out", str(path)], input=said)
    assert run.exit_code == 0, run.output
    assert "unknown preset 'save'; allowed: best, safe, guard" in run.output  # and asked again
    config = StarsConfig.from_file(path)
    assert (config.reward.name_or_path, config.sampling.max_tokens) == ("org/reward", 64)
    again = CliRunner().invoke(app, ["init", "--yes", "--out", str(path)])
    assert again.exit_code == 2
    assert "--force" in again.output


@pytest.mark.parametrize("command", [["generate", "x"], ["init", "--yes"]])
def test_an_unknown_preset_is_refused(command: list[str]) -> None:
    run = CliRunner().invoke(app, [*command, "--preset", "nope"])
    assert run.exit_code == 2
    assert "unknown preset 'nope'; allowed: best, safe, guard" in run.output


def test_commented_defaults_are_those_of_the_fields(tmp_path: Path) -> None:
    path = tmp_path / "stars.yaml"
    CliRunner().invoke(app, ["init", "--yes", "--out", str(path)])
    shown = {}
    for line in path.read_text().splitlines():
        name, colon, value = line.removeprefix("  # ").partition(":")
        if colon and line.startswith("  # ") and name in SamplingParams.model_fields:
            shown[name] = yaml.safe_load(value)
    assert shown == {
        name: SamplingParams.model_fields[name].default
        for name in ("temperature", "top_k", "top_p", "seed")
    }


def test_show_prints_segments_drafts_and_costs(engine: StarsEngine, tmp_path: Path) -> None:
    align = engine.config.align.replace(keep_rejected_text=True)
    [result] = engine.generate(
        "The plot", sampling=SamplingParams(max_tokens=16, seed=3), align=align
    )
    trace = tmp_path / "trace.jsonl"
    write_jsonl([result.replace(prompt="The plot", id="x-1")], trace)
    run = CliRunner().invoke(app, ["show", str(trace), "--attempts"])
    assert run.exit_code == 0, run.output
    for segment in result.segments:
        assert segment.text in run.stdout
        for attempt in segment.attempts:
            assert repr(attempt.text) in run.stdout
    for word in ("x-1  The plot", f"{result.usage.num_drafted_tokens} drafted"):
        assert word in run.stdout
    refused = result.replace(segments=(), abandoned_attempts=result.segments[0].attempts)
    write_jsonl([refused], trace)
    shown = CliRunner().invoke(app, ["show", str(trace), "-a"]).stdout
    assert "nothing kept" in shown
    assert repr(refused.abandoned_attempts[0].text) in shown
    write_jsonl([result.replace(prompt="The plot", id="x-1")], trace)
    page = tmp_path / "trace.html"
    assert CliRunner().invoke(app, ["show", str(trace), "--html", str(page)]).exit_code == 0
    assert "x-1" in page.read_text()
    (tmp_path / "other.txt").write_text("nothing of this kind\n")
    other = CliRunner().invoke(app, ["show", str(tmp_path / "other.txt")])
    assert "Hint: give what --trace or --json wrote" in str(other.exception)
    refused = CliRunner().invoke(app, ["show", str(trace), "--html", "page.txt"])
    assert refused.exit_code != 0


@pytest.mark.slow
def test_doctor_prints_versions_before_it_fails() -> None:
    run = stars("doctor", "--model", "./nowhere", "--reward", "./x")
    assert run.returncode == 2
    for word in ("torch", "transformers", "cuda", "calibrations"):
        assert word in run.stdout
    assert "no such directory" in run.stderr
    assert not any(line != line.rstrip() for line in run.stdout.splitlines())


def test_words_without_quotes_get_a_hint() -> None:
    run = CliRunner().invoke(app, ["generate", "A", "film"])
    assert run.exit_code == 2
    assert "(film). Hint: put an argument of several words in quotes" in run.output


def test_a_report_is_html() -> None:
    with pytest.raises(ConfigError, match=r"use \.html or \.htm"):
        CliRunner().invoke(app, ["calibrate", "--report", "r.txt"], catch_exceptions=False)


@pytest.mark.slow
def test_a_missing_judge_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOP_AT_HEAVY_IMPORTS, "train-guide", "--judge", "./judge"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("checking --judge ./judge\nerror: --judge ./judge: no such")


@pytest.mark.slow
def test_a_wrong_reward_is_found_before_torch_is_imported() -> None:
    code = (
        "import sys; from stars_engine import *\n"
        "config = StarsConfig(model='stars:embedded-lm', reward='nowhere:f', align='best')\n"
        "try: StarsEngine(config).load()\n"
        "except ModelLoadError as error: print(error)\n"
        "print('torch' in sys.modules)"
    ).replace("import *", "import *; from stars_engine.errors import ModelLoadError")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nowhere:f" in run.stdout
    assert run.stdout.splitlines()[-1] == "False"


STOP_AT_HEAVY_IMPORTS = """
import sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "scipy", "uvicorn"):
            sys.exit(9)

sys.meta_path.insert(0, Stop())
from stars_engine.cli import main

main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["generate", "x"], "loading stars:embedded-lm"),
        (["calibrate"], "loading stars:embedded-lm"),
        (["train-guide"], "loading stars:embedded-lm"),
        (["demo"], "STARS demo"),
        (["doctor"], "transformers"),
        (["serve", "--port", "0"], "starting the server"),
        (["compare"], "preparing the evaluation"),
        (["sweep", "segment_len=8"], "preparing the evaluation"),
    ],
)
def test_commands_say_something_before_they_import_what_takes_long(
    tmp_path: Path, command: list[str], words: str
) -> None:
    code = [sys.executable, "-c", STOP_AT_HEAVY_IMPORTS]
    run = subprocess.run(
        [*code, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 9, run.stderr
    assert words in run.stdout + run.stderr


def test_a_second_fit_says_that_it_repeats_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: object) -> None:
        raise InterruptedError

    said: list[str] = []
    monkeypatch.setattr(messages, "say", said.append)
    monkeypatch.setattr("stars_engine.cli.train_guide.loaded", stop)
    for expected in ([], [f"{tmp_path} holds a guide"]):
        run = CliRunner().invoke(app, ["train-guide", "--out", str(tmp_path)])
        assert isinstance(run.exception, InterruptedError)
        assert [text.partition(":")[0] for text in said] == expected
        (tmp_path / "report.json").write_text("{}")
