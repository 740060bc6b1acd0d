"""Control characters in prompts and answers: escaped on a terminal only."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from stars_engine import AlignmentError, SamplingParams, StarsConfig, StarsEngine, StarsResult
from stars_engine.cli import answers as generating
from stars_engine.cli import output
from stars_engine.cli.demo import show_answers
from stars_engine.cli.messages import Messages
from stars_engine.cli.prompts import PromptRecord
from stars_engine.trace import transcript
from tests.support.marks import slow_but_first
from tests.support.processes import stars

NASTY = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "C1": "\x9b31mred\x9d0;title\x9c",
    "cursor": "safe\rEVIL\b\b\x0b\x0c\x7f",
    "bidi": "a\u202eevil\u202c \u2066x\u2069 \u200f",
    "lines": "a\u2028b\u2029c",
    "null": "a\0b",
}
RAW = set("\x1b\x07\x08\r\x0b\x0c\x7f\0\x9b\x9d\x9c\u202e\u202c\u2066\u2069\u200f\u2028\u2029")
MARKUP = "[red]x[/red] [/nope] :smile: [link=http://evil]y[/link]"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", NASTY)
def test_control_characters_are_visible(name: str) -> None:
    shown = output.visible(NASTY[name])
    assert not RAW & set(shown)
    assert "\\" in shown


def test_other_text_is_unchanged() -> None:
    text = "Ünïcode 🙂 👩‍👩‍👧 العربية עברית\n\tindented [red]\\x1b"
    assert output.visible(text) == text


@pytest.mark.parametrize("text", NASTY.values())
def test_output_on_a_terminal_and_in_a_file(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        monkeypatch.setattr(sys, "stdout", stream)
        output.write(text)
    assert not RAW & set(terminal.getvalue())
    assert file.getvalue() == text + "\n"


@pytest.mark.parametrize("text", NASTY.values())
def test_json_output_stays_valid(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    output.write_json(json.dumps({"text": text}, ensure_ascii=False))
    assert not RAW & set(terminal.getvalue())
    assert json.loads(terminal.getvalue()) == {"text": text}


@pytest.mark.parametrize("text", [*NASTY.values(), MARKUP])
def test_messages_and_logs(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        monkeypatch.setattr(sys, "stderr", stream)
        console = Messages()
        console.say(text)
        console.say_error(AlignmentError(f"no draft of {text} was kept"))
    assert f"{text}\n" in file.getvalue()
    if text is MARKUP:
        assert MARKUP.split()[-2] in terminal.getvalue()
        assert ":smile:" in terminal.getvalue()
        assert "[red]x[/red]" in terminal.getvalue()
    else:
        assert output.visible(text).split("\n")[0][:4] in terminal.getvalue()
    assert not (RAW - {"\x1b"}) & set(terminal.getvalue())
    assert "\x1b]" not in terminal.getvalue()  # colours of our own are the only escapes


@cache
def generated() -> StarsResult:
    with StarsEngine() as engine:
        [result] = engine.generate("A film", sampling=SamplingParams(max_tokens=8, seed=0))
    return result


def answer(text: str) -> StarsResult:
    result = generated()
    segments = [segment.replace(text=text) for segment in result.segments]
    return result.replace(text=text, segments=segments)


@pytest.mark.parametrize("text", [*NASTY.values(), MARKUP])
def test_the_demo(text: str) -> None:
    result = answer(text)

    def shown(*, terminal: bool) -> str:
        file = io.StringIO()
        console = Console(
            file=file, force_terminal=terminal, width=200, color_system=None, highlight=False
        )
        from stars_engine.types import SegmentEvent

        events = [
            SegmentEvent(segment=result.segments[0], text=text),
            SegmentEvent(text="", result=result),
        ]
        show_answers(console, [text], [result], events)
        return file.getvalue()

    found = shown(terminal=True)
    assert not (RAW & set(found))
    if text is MARKUP:
        assert MARKUP in found


def test_the_transcript_shows_control_characters() -> None:
    for text in NASTY.values():
        assert not RAW & set(transcript(answer(text)))


@pytest.mark.parametrize(
    ("num_prompts", "as_json"), slow_but_first([(1, True), (1, False), (2, True), (2, False)])
)
def test_generate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_prompts: int, as_json: bool
) -> None:
    """The engine's own answers, with a prompt and a text that take over terminals."""
    text = "".join(NASTY.values())
    result = answer(text)
    prompts = [PromptRecord(text)] * num_prompts

    def stream(*_: object, **__: object) -> object:
        from stars_engine.types import SegmentEvent

        for index in range(num_prompts):
            own = result.replace(prompt_index=index)
            yield SegmentEvent(text=text, segment=own.segments[0], prompt_index=index)
            yield SegmentEvent(text="", result=own, prompt_index=index)

    monkeypatch.setattr(StarsEngine, "stream", stream)
    outputs = {}
    for kind in (Terminal, Pipe):
        monkeypatch.setattr(sys, "stdout", kind())
        generating.run_generate(prompts, StarsConfig(), as_json=as_json, trace=None)
        outputs[kind] = sys.stdout.getvalue()
    assert not RAW & set(outputs[Terminal])
    if as_json:
        for shown in outputs.values():
            assert StarsResult.model_validate_json(shown.split("\n")[0]).text == text
    else:
        assert text in outputs[Pipe]


class Pipe(io.StringIO):
    encoding = "utf-8"


def on_a_terminal(arguments: list[str], cwd: Path) -> bytes:
    """Run the command with a real terminal as its standard output and error."""
    leader, follower = pty.openpty()
    found = bytearray()

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while block := os.read(leader, 4096):
                found.extend(block)

    reader = threading.Thread(target=read)
    reader.start()
    device = os.ttyname(follower)
    stars(*arguments, cwd=cwd, stdout=device, stderr=device)
    os.close(follower)
    reader.join()
    os.close(leader)
    return bytes(found)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            ["generate", "PROMPT", "--max-tokens", "8", "-n", "2"], marks=pytest.mark.slow
        ),
        pytest.param(
            ["generate", "PROMPT", "--max-tokens", "8", "-n", "2", "--json"], marks=pytest.mark.slow
        ),
        ["generate", "ok", "PROMPT"],
        pytest.param(["generate", "--prompts", "PROMPT"], marks=pytest.mark.slow),
        pytest.param(["generate", "ok", "--config", "PROMPT"], marks=pytest.mark.slow),
        ["PROMPT"],
        pytest.param(["generate", "ok", "--PROMPT"], marks=pytest.mark.slow),
        pytest.param(
            ["generate", "ok", "--model", "PROMPT", "--reward", "PROMPT", "--threshold", "0"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["doctor", "--model", "PROMPT", "--reward", "stars:embedded-reward"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_a_real_terminal_gets_no_escape_sequence(tmp_path: Path, arguments: list[str]) -> None:
    text = "\x1b]0;owned\x07\x9b31m\u202e[red]evil"
    given = [part.replace("PROMPT", text) for part in arguments]
    found = on_a_terminal(given, tmp_path).decode()
    assert "Traceback" not in found
    assert "evil" in found or "--json" in arguments  # which does not repeat prompts
    assert "\x1b]" not in found
    assert not {"\x07", "\x9b", "\u202e"} & set(found)


@pytest.mark.slow
def test_a_file_gets_the_prompt_unchanged(tmp_path: Path) -> None:
    text = "\x1b[31mThe film\x1b[0m\u202e"
    run = stars("generate", text, "--max-tokens", "4", "-n", "2", cwd=tmp_path)
    assert run.stdout.count(text) == 2


@pytest.mark.slow
def test_a_full_standard_output_is_reported(tmp_path: Path) -> None:
    run = stars("generate", "The film", "--max-tokens", "4", cwd=tmp_path, stdout="/dev/full")
    assert run.returncode == 2
    assert "error: No space left on device" in run.stderr
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr


@pytest.mark.slow
def test_a_full_trace_loses_no_answer(tmp_path: Path) -> None:
    run = stars("generate", "The film", "--max-tokens=4", "-n3", "--trace=/dev/full", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout.count("The film") == 3
    assert "/dev/full" in run.stderr
    assert "No space left on device" in run.stderr


@pytest.mark.parametrize("name", NASTY)
def test_names_in_tables(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Names of arms and judges come from recipes, names of models from configs."""
    text = f"{NASTY[name]}{MARKUP}"
    monkeypatch.setattr(sys, "stdout", Terminal())
    shown = output.cell(text).plain
    assert not RAW & set(shown)
    assert MARKUP in shown
    monkeypatch.setattr(sys, "stdout", Pipe())
    assert output.cell(text).plain == Text(text).plain
