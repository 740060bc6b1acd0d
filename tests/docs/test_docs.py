"""Code in README.md and docs/ runs as shown."""

from __future__ import annotations

import inspect
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import llama_index.core
import pytest

import langchain_stars
import llamaindex_stars
from stars_engine import AlignParams, Alternative, EngineParams, JsonGrammar, SamplingParams
from stars_engine.schema import Schema, _allowed
from tests.support.processes import run_python

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of one language, each with the line of the page it begins at."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def stars_commands() -> list[str]:
    lines = [
        line
        for _, block in blocks(ROOT / "docs" / "command-line.md", "bash")
        for line in block.splitlines()
    ]
    # The demo is run by a test of its own.
    return [
        line for line in lines if line.startswith("stars ") and not line.startswith("stars demo")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # A page sets it for the whole process.
    monkeypatch.setattr(llama_index.core, "global_tokenizer", llama_index.core.global_tokenizer)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, block in blocks(page, "python"):
        # Blank lines before it, so that a traceback points into the page.
        exec(compile("\n" * line + block, str(page), "exec", dont_inherit=True), namespace)


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapter",
    [langchain_stars.ChatStars, langchain_stars.StarsLLM, llamaindex_stars.StarsLLM],
    ids=["chat", "llm", "index"],
)
def test_examples_of_adapters_run(adapter: type, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    text = inspect.getdoc(adapter) or ""
    examples = re.findall(r"^( *)```python\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    for _, example in examples:
        exec(compile(textwrap.dedent(example), adapter.__name__, "exec"), namespace)
    assert examples
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", stars_commands())
def test_commands_run(command: str, tmp_path: Path) -> None:
    args = shlex.split(command, comments=True)[1:]
    run = run_python("from stars_engine.cli import main; main()", *args, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_readme_has_exactly_two_set_up_commands() -> None:
    commands = [block.strip() for _, block in blocks(ROOT / "README.md", "bash")]
    assert [command.rsplit("bin/", 1)[1] for command in commands] == [
        "stars demo",
        "python -m pytest -n 2",
    ]


def test_links_have_targets() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def field_table(kind: type[Schema]) -> str:
    """Return a Markdown table of a config object's fields, as docs/configuration.md has it."""
    rows = [f"### `{kind.__name__}`", "", "| field | default | allowed | |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default!r}`"
        cells = f"`{name}`", default, _allowed(field), field.description or ""
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (SamplingParams, "configuration.md"),
        (AlignParams, "configuration.md"),
        (Alternative, "configuration.md"),
        (EngineParams, "configuration.md"),
        (JsonGrammar, "grammars.md"),
    ],
)
def test_field_tables_match_the_code(kind: type[Schema], name: str) -> None:
    table = field_table(kind)
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert table in page, f"put this into docs/{name}:\n{table}"
