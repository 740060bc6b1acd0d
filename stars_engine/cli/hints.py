"""Say in options of the command line what an error says in Python."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Words of Python that have another form on the command line.
_PHRASES = (
    (re.compile(r"; the error's `result` holds the accepted text"), ""),
    (
        re.compile(r"(top_k: .*?an integer >= 1 or )None(.*?); None keeps all"),
        r"\1all\2; all: keep all",
    ),
    (re.compile(r"; None draws a new seed"), "; without one, a new seed is drawn"),
    (re.compile(r"(; allowed: [^.;]*?) or None\b"), r"\1"),
    (re.compile(r"ConstantSchedule\(value=\.\.\.\)"), "--threshold"),
    (re.compile(r"preset\('paper', target=\.\.\.\)"), "--preset paper --target NUMBER"),
    (re.compile(r"the preset 'best'"), "--preset best"),
    (re.compile(r"AlignParams\(preset='(\w+)'\)"), r"--preset \1"),
    (re.compile(r"use AutoSchedule\(\)"), "use --preset best"),
    (re.compile(r"AutoSchedule\(([a-z_]+)=([\w.]+)\)"), r"\1=\2"),
    (
        re.compile(r"\b(?:AlignParams|SamplingParams|ServerParams|StarsConfig)(?:\(\.\.\.\))?(: )"),
        "",
    ),
)
_QUOTES = "'\"`"
# Fields that are no words of English, so that they mean the field wherever they stand.
_UNLIKE_WORDS = {"beta", "lookahead"}


def in_options(text: str, options: Mapping[str, str]) -> str:
    """Return a message with options instead of the fields that they set.

    `name=value` becomes `--name value`, and `name` becomes `--name` if it cannot be another word.

    Args:
        text: The message.
        options: The options of the command, by the field that each sets.
    """
    if not options:
        return text
    for pattern, replacement in _PHRASES:
        text = pattern.sub(replacement, text)
    # A message begins with the field, and describes it after "allowed: ...".
    fields = "|".join(map(re.escape, options))
    leading = re.compile(rf"(^|^  - |allowed; .*?\. )({fields})(?=: )", re.MULTILINE)
    text = leading.sub(lambda found: f"{found[1]}{options[found[2]]}", text)
    names = "|".join(re.escape(name) for name in sorted(options, key=len, reverse=True))
    value = r"'[^']*'|\"[^\"]*\"|-?[\w.]+"
    given = re.compile(rf"(?<![\w.\-/])[`]?({names})=({value})[`]?")
    text = given.sub(lambda found: f"{options[found[1]]} {found[2].strip(_QUOTES)}", text)
    alone = "|".join(re.escape(n) for n in options if "_" in n or n in _UNLIKE_WORDS)
    if alone:
        bare = re.compile(rf"(?<![\w.\-/'])[`]?\b({alone})\b[`]?(?![\w=(/')]|\.\w)")
        text = bare.sub(lambda found: options[found[1]], text)
    return text
