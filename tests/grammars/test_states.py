"""States read tokens late, once for all forks, without the interpreter lock; texts are the same."""

from __future__ import annotations

import gc
import json
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from stars_engine import ChoiceGrammar, EbnfGrammar, JsonGrammar, RegexGrammar
from stars_engine.config import Grammar
from stars_engine.grammars import Grammars, GrammarState, compiled, states
from stars_engine.grammars.sources import key_of, source_of
from tests.support.grammars import PIECES, byte_grammars

RECIPES: list[Grammar] = [
    RegexGrammar(pattern="([a-g]{1,12}[ ,.])*"),
    JsonGrammar(json_schema={"properties": {"ab": {"type": "string"}, "b": {"enum": [1, True]}}}),
    EbnfGrammar(text='start: list{20}\nlist: "[" (WORD | list)* "]"\nWORD: /[a-j]+/'),
]


def matcher_after(state: GrammarState, tokens: Sequence[int]) -> Any:
    """Return the library's own state after all tokens, read one after the other."""
    matcher = state.fork().matcher
    for token in tokens:
        matcher.consume_tokens([token])
    return matcher


def mask_after(matcher: Any) -> list[bool]:
    """Return the library's own mask, without the token that ends the text."""
    if matcher.is_error():
        return [False] * len(PIECES)
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    flags: list[bool] = np.unpackbits(bits, bitorder="little")[: len(PIECES)].astype(bool).tolist()
    return flags


@pytest.mark.parametrize("slow_s", [0.0, math.inf])
@pytest.mark.parametrize("grammar", RECIPES)
def test_states_equal_those_that_read_each_token_at_once(
    grammar: Grammar, slow_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are added, states forked and asked about in random order, also with wrong tokens."""
    monkeypatch.setattr(states, "SLOW_S", slow_s)
    grammars, rng = byte_grammars(), random.Random(1)
    num_errors = 0
    for _ in range(4):
        start = grammars.start(grammar)
        texts: list[tuple[GrammarState, list[int]]] = [(start.fork(), [])]
        for _ in range(40):
            state, tokens = rng.choice(texts)
            match rng.choice(["fork", "ask", "add", "add", "add anything"]):
                case "fork":
                    texts.append((state.fork(), tokens.copy()))
                case "ask":
                    [mask] = grammars.allowed([state])
                    assert mask.tolist() == mask_after(matcher_after(start, tokens))
                case "add":
                    mask_before = mask_after(matcher_after(start, tokens))
                    added = rng.choice([t for t, may in enumerate(mask_before) if may] or [0])
                    state.consume([added])
                    tokens.append(added)
                case _:
                    added = rng.randrange(len(PIECES)) if rng.random() < 0.2 else ord("a")
                    state.consume((added,))
                    tokens.append(added)
        grammars.allowed([state for state, _ in texts])  # all together, those in error, too
        for state, tokens in texts:
            after = matcher_after(start, tokens)
            assert bool(state.error) == after.is_error()
            assert state.matcher.is_accepting() == after.is_accepting()
            num_errors += after.is_error()
    assert num_errors


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of tokens of each matcher that reads."""
    lengths: list[int] = []
    read = states.Readers.read

    def counted(self: Any, unread: Any) -> None:
        lengths.extend(len(tokens) for _, tokens in unread)
        read(self, unread)

    monkeypatch.setattr(states, "SLOW_S", 0.0)
    monkeypatch.setattr(states.Readers, "read", counted)
    return lengths


def test_tokens_before_a_fork_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = byte_grammars()
    state = grammars.start(RegexGrammar(pattern="a*b"))
    lengths = counting(monkeypatch)
    state.consume([ord("a")] * 3)
    forks = [state.fork() for _ in range(4)]
    for fork in forks:
        fork.consume([ord("a")])
    state.consume([ord("b")])
    assert not lengths
    grammars.allowed(forks)
    assert lengths == [3, 1, 1, 1, 1]
    assert state.matcher.is_accepting()
    assert not forks[0].matcher.is_accepting()
    assert lengths == [3, 1, 1, 1, 1, 1]


def test_forks_on_several_threads_read_their_origin_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = byte_grammars()
    lengths = counting(monkeypatch)
    for _ in range(20):
        state = grammars.start(RegexGrammar(pattern="a*b"))
        state.consume([ord("a")] * 50)
        forks = [state.fork() for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            masks = list(threads.map(lambda fork: grammars.allowed([fork]), forks))
        assert len({mask.tobytes() for mask in masks}) == 1
    assert lengths == [50] * 20


@pytest.mark.slow
def test_other_threads_run_while_a_token_of_a_large_grammar_is_read() -> None:
    schema = {"properties": {f"property{index}": {"type": "integer"} for index in range(6000)}}
    state = byte_grammars().start(JsonGrammar(json_schema=schema))
    state.grammar.note(math.inf)  # so that the speed of this machine does not decide it
    state.consume(b'{"')
    num_ticks, stop = 0, threading.Event()

    def tick() -> None:
        nonlocal num_ticks
        while not stop.wait(0.001):
            num_ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    started_s, before = time.perf_counter(), num_ticks
    assert not state.error
    seconds, ticks = time.perf_counter() - started_s, num_ticks - before
    stop.set()
    thread.join()
    assert ticks >= max(5, 50 * seconds)  # of up to 1,000 per second


def test_masks_of_quick_grammars_do_not_wait_for_those_of_slow_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grammars = Grammars(PIECES, [], [])
    quick, slow = (grammars.start(RegexGrammar(pattern=text)) for text in ("a+", "b+"))
    slow.grammar.note(math.inf)
    go_on, threads = threading.Event(), []
    allowed = Grammars.allowed

    def waiting(self: Grammars, asked: Sequence[Any], *args: Any) -> Any:
        threads.append(threading.current_thread().name)
        if slow in asked:
            assert go_on.wait(60)
        return allowed(self, asked, *args)

    monkeypatch.setattr(Grammars, "allowed", waiting)
    late, soon = grammars.allowed_soon([slow]), grammars.allowed_soon([quick])
    assert soon.result(60)[0].nonzero()[0].tolist() == [ord("a")]
    assert not late.done()
    go_on.set()
    assert late.result(60)[0].nonzero()[0].tolist() == [ord("b")]
    assert sorted(threads) == ["stars-grammar", "stars-slow-grammar"]


def test_a_grammar_is_slow_until_its_masks_are_quick_for_a_while() -> None:
    grammar = byte_grammars().start(RegexGrammar(pattern="c+")).grammar
    grammar.note(10 * states.SLOW_S)
    assert grammar.is_slow
    for _ in range(20):
        grammar.note_mask(0.0)
    assert grammar.is_slow
    for _ in range(200):
        grammar.note_mask(0.0)
    assert not grammar.is_slow


def test_grammars_in_use_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MAX_KEPT", 2)
    grammars = Grammars(PIECES, [], [])
    used = [RegexGrammar(pattern=f"a{index}") for index in range(6)]
    for grammar in used:
        grammars.start(grammar)
    assert all(map(grammars.is_compiled, used))
    assert not grammars.is_compiled(RegexGrammar(pattern="a0"))  # another object
    del grammar, used
    gc.collect()
    assert not grammars._known
    assert len(grammars._compiled) == 2


def test_keys_differ_with_the_content() -> None:
    schemas: list[Any] = [{"enum": [1]}, {"enum": [True]}, {"enum": [1.0]}, {"enum": ["1"]}]
    make: list[Callable[[], Grammar]] = [
        *(lambda schema=schema: JsonGrammar(json_schema=schema) for schema in schemas),
        lambda: JsonGrammar(json_schema=schemas[0], compact=True),
        lambda: JsonGrammar(json_schema=schemas[0], extra_properties=True),
        lambda: JsonGrammar(json_schema={"properties": {"a": {}, "b": {}}}),
        lambda: JsonGrammar(json_schema={"properties": {"b": {}, "a": {}}}),
        lambda: RegexGrammar(pattern="a"),
        lambda: EbnfGrammar(text="a"),
        lambda: ChoiceGrammar(choices=["a"]),
        lambda: ChoiceGrammar(choices=["a", "b"]),
        lambda: ChoiceGrammar(choices=["a | b"]),
        lambda: ChoiceGrammar(choices=["ab"]),
        lambda: ChoiceGrammar(choices=list("ab" * 600)),
    ]
    keys = [key_of(each()) for each in make]
    assert len(set(keys)) == len(keys)
    assert keys == [key_of(each()) for each in make]


def test_large_sources_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from stars_engine.grammars import sources

    pauses = []
    monkeypatch.setattr(sources, "give_way", lambda: pauses.append(None))
    choices = [f"choice {index}" for index in range(5000)]
    grammar = ChoiceGrammar(choices=choices)
    source = source_of(grammar, str, str)
    assert source.startswith(
        "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, choices)) + "\n"
    )
    key_of(grammar)
    assert len(pauses) >= 2 * 9
    schema = {"enum": choices}
    pauses.clear()
    assert "".join(sources._json(schema)) == json.dumps(schema)
    assert len(pauses) >= 9
