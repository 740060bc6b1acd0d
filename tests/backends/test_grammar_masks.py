"""Token masks: step by step and all at once they are equal, and so are the draws."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch

from stars_engine import (
    ChoiceGrammar,
    EbnfGrammar,
    JsonGrammar,
    RegexGrammar,
    SamplingParams,
)
from stars_engine.backends.grammar_masks import GrammarMasks
from stars_engine.config import Grammar
from stars_engine.grammars import Grammars, GrammarState, states
from stars_engine.sampling import propose

LETTERS = "abcdefghij"
WORDS = ["".join(random.Random(seed).choices(LETTERS, k=1 + seed % 5)) for seed in range(200)]
PIECES = [piece.encode() for piece in [*sorted(set(WORDS)), *'{}[]":, .0123456789\n', "<x>", "<e>"]]
END, OTHER_END = len(PIECES) - 1, 0
SIZE = len(PIECES)
GRAMMARS: list[Grammar] = [
    RegexGrammar(pattern="([a-g]{1,12}[ ,.])*"),
    JsonGrammar(json_schema={"type": "object", "properties": {"a": {"type": "string"}}}),
    EbnfGrammar(text='start: list{20}\nlist: "[" (WORD | list)* "]"\nWORD: /[a-j]+/'),
    ChoiceGrammar(choices=("abc", "abd", "b")),
]


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(PIECES, [SIZE - 2, END], [END])


def walk(grammars: Grammars, grammar: Grammar, rng: random.Random) -> list[GrammarState]:
    """Return the states on a random way through a grammar."""
    states = [grammars.start(grammar)]
    for _ in range(12):
        options = np.flatnonzero(grammars.allowed(states[-1:])[0]).tolist()
        token = rng.choice(options)
        if token == END:
            break
        states.append(states[-1].fork())
        states[-1].consume([token])
    return states


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("stops", [(), (OTHER_END,)])
def test_steps_of_one_token_equal_one_pass(
    grammars: Grammars, grammar: Grammar, stops: tuple[int, ...]
) -> None:
    rng = random.Random(len(stops))
    states = walk(grammars, grammar, rng)
    states.append(states[-1].fork())
    states[-1].consume([SIZE - 2])  # a control token, which leaves it in error
    assert states[-1].error
    for state in states:
        [mask] = grammars.allowed([state], stops)
        assert [grammars.allows(state, token, stops) for token in range(SIZE)] == mask.tolist()


def settings(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "top_k": 5, **fields})


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        settings(),
        settings(top_k=1),
        settings(top_k=40),  # of which four times as many are all tokens
        settings(top_p=0.7, min_p=0.1),
        settings(temperature=0),
        settings(top_k=None),
        settings(stop_token_ids=(OTHER_END,)),
    ],
)
@pytest.mark.parametrize("logits_are", ["any", "tied", "banned", "broken", "against it"])
def test_tokens_equal_those_under_full_masks(
    grammars: Grammars, sampling: SamplingParams, logits_are: str
) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        ways = [walk(grammars, grammar, rng) for grammar in GRAMMARS]
        masks = GrammarMasks(grammars, sampling, len(ways))
        for step in range(6):
            states = [way[min(step, len(way) - 1)] for way in ways]
            whole = torch.from_numpy(grammars.allowed(states, sampling.stop_token_ids))
            logits = torch.randn(len(ways), SIZE)
            match logits_are:
                case "tied":
                    logits = logits.round()
                case "banned":
                    logits[:, rng.sample(range(SIZE), SIZE * 9 // 10)] = -torch.inf
                case "broken":
                    logits[rng.randrange(len(ways)), rng.randrange(SIZE)] = torch.nan
                case "against it":
                    logits -= 5.0 * whole
            uniforms = torch.rand(len(ways), dtype=torch.float64)
            masks.prepare(states)
            got = propose(logits, sampling, allowed=masks.allowed)
            expected = propose(logits, sampling, allowed=lambda *_, whole=whole: whole)  # type: ignore[misc]
            assert torch.equal(got.draw(uniforms), expected.draw(uniforms))


def test_permissive_masks_need_few_tokens(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whole mask at the start, then none; one more where the likeliest are not allowed."""
    monkeypatch.setattr(states, "SLOW_S", math.inf)
    words, choice = grammars.start(GRAMMARS[0]), grammars.start(GRAMMARS[3])
    whole: list[int] = []
    allowed = Grammars.allowed

    def counted(self: Grammars, states: Any, stops: Any = ()) -> Any:
        whole.append(sum(state is not None for state in states))
        return allowed(self, states, stops)

    monkeypatch.setattr(Grammars, "allowed", counted)
    masks = GrammarMasks(grammars, settings(), 2)
    torch.manual_seed(0)
    logits = torch.randn(2, SIZE)
    for expected in ([2], [1], [1]):
        masks.prepare([words, choice])
        masks.allowed(logits, 5)
        assert whole == expected
        whole.clear()
    against = logits - 50.0 * torch.from_numpy(allowed(grammars, [words, choice]))
    for asked, expected in ((against, [1, 1]), (logits, [2]), (logits, [2])):
        masks.prepare([words, choice])
        masks.allowed(asked, 5)
        assert whole == expected
        whole.clear()
    monkeypatch.setattr(states, "SLOW_S", 0.0)  # tokens of slow grammars are not tried
    masks.prepare([words, choice])
    masks.allowed(logits, 5)
    assert whole == [2]
