"""Links and tables of README.md and docs/."""

from __future__ import annotations

import re

import pytest

from stars_engine import AlignParams, Alternative, EngineParams, JsonGrammar, SamplingParams
from stars_engine.schema import Schema, _allowed
from tests.support.pages import PAGES, ROOT, blocks


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
