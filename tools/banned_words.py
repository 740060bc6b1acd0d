"""Check that code and prose use the words of the field, not those that they replaced.

Usage: python tools/banned_words.py [--list] [FILE ...]

The words, what to write instead, and whether a hit fails the check are in tools/banned_words.toml.
Names are compared with every identifier of Python code, in the code spans of docstrings and
documents, too. Prose is searched in comments, strings, docstrings and documents. A class name that
two modules of stars_engine define is a hit as well. Without files, everything in the repository is
checked. Prints how often each word occurs, with --list also where.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Path(__file__).with_suffix(".toml")
SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".cff"}
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
F_STRING = re.compile(r"(?:f|rf|fr)[\"']", re.IGNORECASE)
FIELD = re.compile(r"\{\{|\}\}|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Word:
    """A word that is not used any more.

    Attributes:
        label: How it is shown.
        instead: What to write.
        names: Matches whole identifiers; None if no identifier is meant.
        modules: Matches whole parts of a Python file's path; None if no module is meant.
        prose: Matches in prose, whatever the case; None if no prose is meant.
    """

    label: str
    instead: str
    names: re.Pattern[str] | None = None
    modules: re.Pattern[str] | None = None
    prose: re.Pattern[str] | None = None


TWO_CLASSES = Word("one class name in two modules", "a name that tells the two apart")


@dataclass(frozen=True)
class Rules:
    """What is checked, and how.

    Attributes:
        enforce: Whether a hit fails the check.
        words: The words.
        exclude: Globs of files that are not checked.
        allow: Matches phrases in prose in which a banned word is right.
        prose_only: Globs of files whose identifiers are not checked, as they tell of renamed ones.
    """

    enforce: bool
    words: tuple[Word, ...]
    exclude: tuple[str, ...]
    allow: re.Pattern[str] | None
    prose_only: tuple[str, ...]

    @cached_property
    def any_name(self) -> re.Pattern[str] | None:
        """Matches every banned identifier."""
        return _either(word.names for word in self.words)

    @cached_property
    def any_prose(self) -> re.Pattern[str] | None:
        """Matches every banned piece of prose."""
        return _either(word.prose for word in self.words)


class Found(NamedTuple):
    """A name, or a piece of prose, and the line it begins at."""

    line: int
    text: str


class Parts(NamedTuple):
    """What a file consists of: parts of its path, identifiers, pieces of prose."""

    modules: list[Found]
    names: list[Found]
    prose: list[Found]


class Hit(NamedTuple):
    """A banned word, and where it stands."""

    path: str
    line: int
    found: str
    word: Word


def read_rules(path: Path = CONFIG) -> Rules:
    """Return the rules of a file."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    words = tuple(
        Word(
            entry["word"],
            entry["instead"],
            _any_of(entry.get("names", [])),
            _any_of(entry.get("modules", [])),
            _any_of(entry.get("prose", []), re.IGNORECASE),
        )
        for entry in data["words"]
    )
    return Rules(
        enforce=data["enforce"],
        words=words,
        exclude=tuple(data["exclude"]),
        allow=_any_of(data["allow"], re.IGNORECASE),
        prose_only=tuple(data["prose_only"]),
    )


def check(text: str, path: str, rules: Rules) -> Iterator[Hit]:
    """Yield the banned words of one file.

    Args:
        text: What it holds.
        path: Its path in the repository, with slashes.
        rules: What is banned.
    """
    parts = parts_of(text, path)
    if any(Path(path).match(glob) for glob in rules.prose_only):
        parts.names.clear()
    # Few files have a hit, so all words are searched for at once before each by itself.
    names = _matching(rules.any_name, parts.names)
    # Blanks keep the lines of what follows.
    prose = [
        Found(line, rules.allow.sub(_blank, piece) if rules.allow else piece)
        for line, piece in parts.prose
        if rules.any_prose and rules.any_prose.search(piece)
    ]
    for word in rules.words:
        for found in _matching(word.modules, parts.modules) + _matching(word.names, names):
            yield Hit(path, *found, word)
        for line, piece in prose if word.prose else ():
            for match in word.prose.finditer(piece) if word.prose else ():
                yield Hit(path, line + piece.count("\n", 0, match.start()), match[0], word)


def _matching(pattern: re.Pattern[str] | None, found: Sequence[Found]) -> list[Found]:
    return [item for item in found if pattern and pattern.fullmatch(item.text)]


def tracked_files(rules: Rules) -> list[Path]:
    """Return the files of the repository that are checked."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if _is_checked(path, rules)]


def hits_of(files: Iterable[Path], rules: Rules) -> list[Hit]:
    """Return the banned words of files, and class names that two of them define."""
    texts = {_name(path): path.read_text(encoding="utf-8") for path in files}
    hits = [hit for path, text in texts.items() for hit in check(text, path, rules)]
    return hits + list(same_names(texts))


def same_names(texts: Mapping[str, str]) -> Iterator[Hit]:
    """Yield the public classes of stars_engine whose name another module has for a class, too.

    Args:
        texts: What files hold, by their paths.
    """
    first: dict[str, str] = {}
    for path, text in texts.items():
        if not (path.startswith("stars_engine/") and path.endswith(".py")):
            continue
        classes = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
        for node in classes:
            if not node.name.startswith("_") and first.setdefault(node.name, path) != path:
                yield Hit(path, node.lineno, node.name, TWO_CLASSES)


def parts_of(text: str, path: str) -> Parts:
    """Return the parts of a file that different patterns are for."""
    if path.endswith(".py"):
        modules = [Found(1, part) for part in path.removesuffix(".py").split("/")]
        return Parts(modules, *_names_and_prose_of_python(text))
    if path.endswith(".md"):
        return Parts([], _names_in_code(text, 1), [Found(1, CODE.sub(_blank, text))])
    return Parts([], [], [Found(1, text)])


def _names_and_prose_of_python(text: str) -> tuple[list[Found], list[Found]]:
    names, prose = [], []
    with_prose = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        line = token.start[0]
        if token.type == tokenize.NAME:
            names.append(Found(line, token.string))
        elif token.type in with_prose:
            text = token.string
            if F_STRING.match(text):  # one token before Python 3.12, and many since
                fields = [field for field in FIELD.finditer(text) if field[0] not in {"{{", "}}"}]
                names += [Found(line, name) for f in fields for name in IDENTIFIER.findall(f[0])]
                text = FIELD.sub(_blank, text)
            names += _names_in_code(text, line)
            prose.append(Found(line, CODE.sub(_blank, text)))
    return names, prose


def _names_in_code(text: str, line: int) -> list[Found]:
    """Return the identifiers in code spans and code blocks of a text that begins at a line."""
    return [
        Found(line + text.count("\n", 0, code.start() + name.start()), name[0])
        for code in CODE.finditer(text)
        for name in IDENTIFIER.finditer(code[0])
    ]


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _any_of(patterns: Sequence[str], flags: int = 0) -> re.Pattern[str] | None:
    # Prose is wrapped, so a blank of a pattern matches the end of a line and a comment's sign, too.
    wrapped = [pattern.replace(" ", r"[\s#>\"']+") for pattern in patterns]
    return re.compile("|".join(f"(?:{pattern})" for pattern in wrapped), flags) if wrapped else None


def _either(patterns: Iterable[re.Pattern[str] | None]) -> re.Pattern[str] | None:
    given = [pattern for pattern in patterns if pattern is not None]
    if not given:
        return None
    return re.compile("|".join(pattern.pattern for pattern in given), given[0].flags)


def _is_checked(path: Path, rules: Rules) -> bool:
    name = Path(_name(path))
    return (
        path.suffix in SUFFIXES
        and path.is_file()
        and not any(name.match(glob) for glob in rules.exclude)
    )


def _name(path: Path) -> str:
    path = path.resolve()
    return (path.relative_to(ROOT) if path.is_relative_to(ROOT) else path).as_posix()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Check for words that are not used any more.")
    parser.add_argument("--list", action="store_true", help="show where each word stands")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: all")
    options = parser.parse_args(arguments)
    rules = read_rules()
    files = [path for path in options.files if _is_checked(path, rules)]
    hits = hits_of(files if options.files else tracked_files(rules), rules)
    if options.list or (rules.enforce and hits):
        for hit in hits:
            print(f"{hit.path}:{hit.line}: {hit.found!r}: write {hit.word.instead}")
    counts = Counter(hit.word.label for hit in hits)
    for label, count in counts.most_common():
        print(f"{count:6} {label}")
    print(f"{sum(counts.values()):6} in all" if hits else "no banned words")
    return int(rules.enforce and bool(hits))


if __name__ == "__main__":
    sys.exit(main())
