"""Reward functions in plain Python, named as 'examples.reward_functions:sentiment'.

Run `python examples/reward_functions.py` to print the rewards of a few answers.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from stars_engine import FunctionReward
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.types import RewardInput, RewardPrompt

# --- sentiment, by a lexicon -----------------------------------------------------------------


@cache
def analyzer() -> Any:
    """Load the lexicon once."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def sentiment(prompt: str, completion: str) -> float:
    """Return how positive the answer is, -1 to 1."""
    return float(analyzer().polarity_scores(completion)["compound"])


# --- a guard ---------------------------------------------------------------------------------

PHONE_NUMBER = re.compile(r"\+?\d[\d ()/-]{6,}\d")


def no_phone_number(prompt: str, completion: str) -> float:
    """Return 0, or minus infinity (never kept, whatever the threshold) for a phone number."""
    return -float("inf") if PHONE_NUMBER.search(completion) else 0.0


# --- length ----------------------------------------------------------------------------------


def brevity(prompt: str, completion: str, *, max_words: int = 40) -> float:
    """Return 0 up to `max_words` words, and a point less for each further word."""
    return float(min(0, max_words - len(completion.split())))


# --- JSON ------------------------------------------------------------------------------------


def json_validity(item: RewardInput) -> float:
    """Return 1 for JSON, or while the answer is unfinished for what can become JSON; else 0.

    Needs `FunctionReward(by="input")`: two texts alone do not show whether the answer has ended.
    """
    if not item.finished:
        return float(may_become_json(item.text))
    try:
        json.loads(item.text)
    except ValueError:
        return 0.0
    return 1.0


_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*'
_TOKEN = re.compile(
    rf"""(?P<string>{_STRING}")
       | (?P<value>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)? | true | false | null)
       | (?P<mark>[][{{}},:])""",
    re.VERBOSE,
)
_HALF_STRING = re.compile(rf"{_STRING}(?:\\(?:u[0-9a-fA-F]{{0,3}})?)?")
_HALF_NUMBER = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d*)?(?:(?<=\d)[eE][+-]?\d*)?)?")
_SPACE = " \t\n\r"


def may_become_json(text: str) -> bool:
    """Return whether a text is JSON or the beginning of JSON."""
    closers: list[str] = []  # of what is open
    state = "value"  # value, first (value or ]), first key (key or }), key, colon, end (of a value)
    rest = text.lstrip(_SPACE)
    while rest:
        if _is_half(rest, state):
            return True
        token = _TOKEN.match(rest)
        if token is None:
            return False
        piece, kind = token.group(), token.lastgroup
        rest = rest[token.end() :].lstrip(_SPACE)
        opens = {"[": ("first", "]"), "{": ("first key", "}")}.get(piece)
        if state in ("value", "first") and opens is not None:
            state, closer = opens
            closers.append(closer)
        elif state in ("value", "first") and kind != "mark":
            state = "end"
        elif state in ("key", "first key") and kind == "string":
            state = "colon"
        elif state == "colon" and piece == ":":
            state = "value"
        elif state == "end" and piece == "," and closers:
            state = "value" if closers[-1] == "]" else "key"
        elif closers and piece == closers[-1] and state in ("end", "first", "first key"):
            closers.pop()
            state = "end"
        else:
            return False
    return True


def _is_half(rest: str, state: str) -> bool:
    """Return whether the rest is the beginning of one token that is allowed here."""
    may_be_value = state in ("value", "first")
    if (may_be_value or state in ("key", "first key")) and _HALF_STRING.fullmatch(rest):
        return True
    words = any(word.startswith(rest) for word in ("true", "false", "null"))
    return may_be_value and (words or _HALF_NUMBER.fullmatch(rest) is not None)


def main() -> None:
    """Print the rewards of a few answers."""
    answers = ["A wonderful, touching film.", "Awful. Call +49 30 1234567!", '{"stars": [4, ']
    rewards = {
        "sentiment": FunctionReward(function=sentiment),
        "no_phone_number": FunctionReward(function=no_phone_number),
        "brevity": FunctionReward(function=brevity),
        "json_validity": FunctionReward(function=json_validity, by="input"),
    }
    items = [RewardInput(RewardPrompt("A review:"), answer, ()) for answer in answers]
    for name, config in rewards.items():
        values = [score.value for score in FunctionRewardModel(config).score(items)]
        print(f"{name:>15} reward: {values}")


if __name__ == "__main__":
    main()
