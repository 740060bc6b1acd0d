"""The tools of the repository: banned words and generated pages."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tools import banned_words, code_map
from tools.banned_words import Rules, Word


@pytest.fixture
def rules() -> Rules:
    """Two words: one of code and prose, one of modules."""
    return Rules(
        enforce=True,
        words=(
            Word(
                "round",
                "step",
                names=re.compile("Rounds|num_rounds"),
                prose=re.compile(r"\brounds?\b", re.IGNORECASE),
            ),
            Word("places", "scheduler", modules=re.compile("places")),
        ),
        exclude=("words.toml",),
        allow=re.compile(r"round to\b"),
        prose_only=("CHANGELOG.md",),
    )


def found(text: str, path: str, rules: Rules) -> list[tuple[int, str]]:
    return [(hit.line, hit.found) for hit in banned_words.check(text, path, rules)]


def test_python_files_are_checked_by_names_comments_and_strings(rules: Rules) -> None:
    text = (
        '"""A docstring.\n\nOf the next round, and `num_rounds`; round to ten."""\n'
        "class Rounds:  # Rounds of all\n"
        "    rounds = round(1.5)\n"
        '    text = f"{rounds} {num_rounds:d} {{round}}"\n'
    )
    assert sorted(found(text, "a/b.py", rules)) == [
        (3, "num_rounds"),
        (3, "round"),
        (4, "Rounds"),
        (4, "Rounds"),
        (6, "num_rounds"),
        (6, "round"),
    ]


def test_documents_are_checked_by_prose_and_by_names_in_code(rules: Rules) -> None:
    text = "A round.\n\n```python\nrounds = round(Rounds)\n```\n\n`num_rounds` of `round`\n"
    assert sorted(found(text, "a.md", rules)) == [(1, "round"), (4, "Rounds"), (7, "num_rounds")]
    # Names that were replaced may be listed there.
    assert found(text, "CHANGELOG.md", rules) == [(1, "round")]
    assert found("# a round\nkey = 'round'\n", "a.toml", rules) == [(1, "round"), (2, "round")]


def test_modules_are_checked_by_their_paths(rules: Rules) -> None:
    assert found("", "stars_engine/places.py", rules) == [(1, "places")]
    assert found("", "stars_engine/places/a.py", rules) == [(1, "places")]
    assert found("", "stars_engine/marketplaces.py", rules) == []
    assert found("", "docs/places.md", rules) == []


def test_phrases_are_found_across_lines() -> None:
    pattern = banned_words._any_of(["memory ended"])
    assert pattern is not None
    assert pattern.search("when memory\n    # ended")
    assert not pattern.search("memory, ended")


def test_one_class_name_in_two_modules_is_found() -> None:
    texts = {
        "stars_engine/a.py": "class Row: ...\nclass _Row: ...\n",
        "stars_engine/b.py": "class _Row: ...\n\nclass Row: ...\n",
        "tests/b.py": "class Row: ...\n",
    }
    [hit] = banned_words.same_names(texts)
    assert (hit.path, hit.line, hit.found) == ("stars_engine/b.py", 3, "Row")


def test_a_hit_fails_where_words_are_enforced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rules: Rules,
) -> None:
    bad, good = tmp_path / "bad.md", tmp_path / "good.md"
    bad.write_text("A round.\n")
    good.write_text("A step.\n")
    for enforce in (True, False):
        applied = replace(rules, enforce=enforce)
        monkeypatch.setattr(banned_words, "read_rules", lambda applied=applied: applied)
        assert banned_words.main([str(good)]) == 0
        assert banned_words.main([str(good), str(bad)]) == int(enforce)
        output = capsys.readouterr().out
        assert ("bad.md:1: 'round': write step" in output) == enforce
        assert "1 round" in output


def test_rules_of_the_repository() -> None:
    rules = banned_words.read_rules()
    assert len({word.label for word in rules.words}) == len(rules.words)
    for word in rules.words:
        assert word.names or word.modules or word.prose, word.label
    files = {path.name for path in banned_words.tracked_files(rules)}
    assert "README.md" in files
    assert "banned_words.toml" not in files
    # Python's own names and plain English stay free.
    text = "import static\nround(1.5)\npath.stem\n# told apart; round to ten\n"
    assert found(text, "stars_engine/x.py", rules) == []
    assert found("# It was told.\n", "stars_engine/x.py", rules) == [(1, "told")]


def test_code_map_takes_descriptions_from_docstrings(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "sub").mkdir(parents=True)
    (package / "z.py").write_text('"""First a | b,\nstill first.\n\nSecond."""\n')
    (package / "__init__.py").write_text("")
    (package / "sub" / "a.py").write_text('"""Sub."""\n')
    assert list(code_map.folder_lines("package", tmp_path)) == [
        "| file | what it holds |",
        "|---|---|",
        "| `z.py` | First a \\| b, still first. |",
        "| `sub/a.py` | Sub. |",
    ]


def test_code_map_takes_layers_from_import_linter(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.importlinter.contracts]]\ntype = "layers"\nlayers = ["cli", "a | (b)"]\n'
    )
    assert list(code_map.layer_lines(tmp_path)) == ["1. `cli`", "2. `a`, `b`"]
