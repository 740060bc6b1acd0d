"""Drafts that are paused while others are made equal those that are not."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch

from stars_engine import RegexGrammar, SamplingParams
from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest, Parts, PausableLanguageModel, is_pausable
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.grammars import Grammars
from stars_engine.protocols import has_members
from tests.support.backends import DECODERS, Fed, Text, probe_of, random_backend

PLAIN = SamplingParams(temperature=1.0, top_k=None)
PATTERNS = ("(.|\\n)*", "(.|\\n)+", "(.|\\n){2,99}")
PROMPT = [1, *range(3, 40)]


def requests(text: Text, count: int, size: int = 6, **more: Any) -> list[DraftRequest]:
    return [
        text.request([(0.37 * (k + 1) * (i + 2)) % 1 for i in range(size)], PLAIN, **more)
        for k in range(count)
    ]


def drafts_of(parts: Parts) -> list[Draft]:
    """Continue a draft to its end."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value


def with_decoder(rung: str, tokenizer: object) -> TransformersBackend:
    backend = random_backend("llama", tokenizer)
    backend.decoder = DECODERS[rung](backend.model, backend.context_len)
    return backend


@pytest.mark.parametrize("rung", DECODERS)
def test_drafts_between_the_tokens_of_others_change_nothing(rung: str, tokenizer: object) -> None:
    backend, fresh = (with_decoder(rung, tokenizer) for _ in range(2))
    asked = [(PROMPT, 3, 8), (PROMPT[:20], 2, 8), (PROMPT, 3, 8), ([5], 1, 3)]
    texts = [Text(backend, prompt) for prompt, _, _ in asked]
    all_parts = [
        backend.draft_in_parts(requests(text, count, size, lookahead=1))
        for text, (_, count, size) in zip(texts, asked, strict=True)
    ]
    found: dict[int, list[Draft]] = {}
    while len(found) < len(asked):
        for index, parts in enumerate(all_parts):
            try:
                if index not in found:
                    next(parts)
            except StopIteration as end:
                found[index] = end.value
    for index, (prompt, count, size) in enumerate(asked):
        alone = fresh.draft(requests(Text(fresh, prompt), count, size, lookahead=1))
        assert found[index] == alone
        texts[index].accept(found[index][-1].token_ids)
    for text in texts:  # what is cached is right, too
        again = Text(fresh, text.token_ids)
        assert backend.draft(requests(text, 2)) == fresh.draft(requests(again, 2))


def test_pauses_tell_how_many_tokens_are_left(tokenizer: object) -> None:
    backend = random_backend("llama", tokenizer)
    parts = backend.draft_in_parts(requests(Text(backend, PROMPT), 2, 4))
    assert [pause.num_left for pause in parts] == [3, 2, 1]


def test_what_a_paused_draft_has_computed_is_adopted(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = random_backend("llama", tokenizer)
    fed = Fed(backend, monkeypatch)
    text = Text(backend, PROMPT)
    parts = backend.draft_in_parts(requests(text, 2))
    next(parts)
    for start in range(3, 15):  # more drafts than are kept otherwise
        backend.draft(requests(Text(backend, [start] * 3), 1, 2))
    text.accept(drafts_of(parts)[1].token_ids)
    fed.take()
    backend.draft(requests(text, 1, 1))
    assert fed.take() == [(1, 1)]  # only the last token, which no draft needs unless it is kept


def test_a_paused_draft_that_is_closed_leaves_its_prefix(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = random_backend("llama", tokenizer)
    text = Text(backend, PROMPT)
    parts = backend.draft_in_parts(requests(text, 2))
    next(parts)
    parts.close()
    fed = Fed(backend, monkeypatch)
    drafts = backend.draft(requests(text, 2))
    assert fed.take() == [(2, 1)] * 5
    fresh = random_backend("llama", tokenizer)
    assert drafts == fresh.draft(requests(Text(fresh, PROMPT), 2))


def test_features_are_those_of_the_probes_when_other_probes_are_attached_in_a_pause(
    tokenizer: object,
) -> None:
    backend = random_backend("llama", tokenizer)
    probe = probe_of(backend, (1,))
    asked = requests(Text(backend, PROMPT), 2)
    wanted = backend.draft([_with_probe(request, probe) for request in asked])
    parts = backend.draft_in_parts([_with_probe(request, probe) for request in asked])
    next(parts)
    other = probe_of(backend, (0, 1), 5)
    backend.draft([_with_probe(request, other) for request in requests(Text(backend, [5]), 1)])
    found = drafts_of(parts)
    assert found == wanted
    for draft, before in zip(found, wanted, strict=True):
        assert draft.features[probe].shape == before.features[probe].shape
        assert draft.features[probe] == pytest.approx(before.features[probe], abs=1e-5)


def test_masks_are_computed_during_a_pause(tokenizer: object) -> None:
    backend = random_backend("llama", tokenizer)
    grammar = RegexGrammar(pattern="[!-~]+")
    sampling = PLAIN.replace(grammar=grammar)
    asked = [Text(backend, PROMPT).request([0.3, 0.7, 0.2], sampling) for _ in range(2)]
    wanted = backend.draft(asked)
    parts = backend.draft_in_parts(asked)
    found: list[Draft] = []
    while not found:
        try:
            pause = next(parts)
        except StopIteration as end:
            found = end.value
        else:
            if pause.waits_for is not None:
                pause.waits_for.result(timeout=10)
    assert found == wanted
    assert all(isinstance(draft, Draft) for draft in found)


def test_classes_that_override_only_draft_are_not_paused(tokenizer: object) -> None:
    class Overriding(TransformersBackend):
        def draft(self, asked: Any) -> Any:
            return super().draft(asked)

    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def draft(self, asked: Any) -> Any:
            return self._inner.draft(asked)

    backend = random_backend("llama", tokenizer)
    assert is_pausable(backend)
    assert has_members(Wrapper(backend), PausableLanguageModel)
    assert not is_pausable(Wrapper(backend))
    assert not is_pausable(Overriding.__new__(Overriding))
    backend.draft = lambda asked: []  # type: ignore[method-assign]
    assert not is_pausable(backend)


def _with_probe(request: DraftRequest, probe: Any) -> DraftRequest:
    return replace(request, probes=(probe,))


@pytest.mark.parametrize("rung", ["shared", "graphs"])
def test_memory_is_freed_during_a_pause(rung: str, tokenizer: object) -> None:
    backend, fresh = (with_decoder(rung, tokenizer) for _ in range(2))
    probes = [probe_of(each, (1,)) for each in (backend, fresh)]
    texts = [Text(each, PROMPT) for each in (backend, fresh)]
    asked, alone = (
        [_with_probe(request, probe) for request in requests(text, 2)]
        for text, probe in zip(texts, probes, strict=True)
    )
    parts = backend.draft_in_parts(asked)
    next(parts)
    backend.free_unused()
    found, wanted = drafts_of(parts), fresh.draft(alone)
    assert found == wanted
    for text in texts:
        text.accept(found[1].token_ids)
    assert backend.draft(requests(texts[0], 2)) == fresh.draft(requests(texts[1], 2))


@pytest.fixture
def in_passes(tokenizer: object) -> TransformersBackend:
    """A backend that computes 8 tokens of a prompt at a time."""
    backend = random_backend("llama", tokenizer)
    backend.decoder.cache._max_tokens = 8
    return backend


def test_a_prompt_is_computed_in_parts(
    in_passes: TransformersBackend, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(in_passes, monkeypatch)
    text, other = Text(in_passes, PROMPT), Text(in_passes, PROMPT[:30])
    parts = in_passes.draft_in_parts(requests(text, 2, 3))
    assert [next(parts).num_left for _ in range(3)] == [7, 6, 5]
    assert fed.take() == [(1, 8)] * 3
    beside = in_passes.draft(requests(other, 2))
    assert fed.take() == [(1, 6), *[(2, 1)] * 5]  # what was computed of it is used
    drafts = drafts_of(parts)
    assert fed.take() == [(1, 8), (1, 6), *[(2, 1)] * 2]
    fresh = random_backend("llama", tokenizer)
    assert drafts == fresh.draft(requests(Text(fresh, PROMPT), 2, 3))
    assert beside == fresh.draft(requests(Text(fresh, PROMPT[:30]), 2))


def test_a_prompt_is_computed_again_if_the_cache_is_cleared_in_a_pause(
    in_passes: TransformersBackend, tokenizer: object
) -> None:
    text = Text(in_passes, PROMPT)
    parts = in_passes.draft_in_parts(requests(text, 2, 3))
    next(parts)
    in_passes.decoder.cache.clear()
    in_passes.draft(requests(Text(in_passes, [5, 6, 7]), 1))
    fresh = random_backend("llama", tokenizer)
    assert drafts_of(parts) == fresh.draft(requests(Text(fresh, PROMPT), 2, 3))
    assert text.handle.cached.pool is in_passes.decoder.cache.pool


def test_a_prompt_that_is_given_up_is_not_lost(
    in_passes: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = in_passes.draft_in_parts(requests(Text(in_passes, PROMPT), 2, 3))
    for _ in range(3):
        next(parts)
    parts.close()
    fed = Fed(in_passes, monkeypatch)
    in_passes.draft(requests(Text(in_passes, PROMPT), 1, 1))
    assert fed.take() == [(1, 8), (1, 6)]


def train(backend: TransformersBackend) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backend.model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("rung", ["shared", "graphs"])
def test_a_paused_draft_begins_again_when_weights_have_changed(
    rung: str, tokenizer: object
) -> None:
    backend, fresh = (with_decoder(rung, tokenizer) for _ in range(2))
    before = fresh.draft(requests(Text(fresh, PROMPT), 3, 8))
    parts = backend.draft_in_parts(requests(Text(backend, PROMPT), 3, 8))
    for _ in range(4):
        next(parts)
    train(backend)
    train(fresh)
    backend.draft(requests(Text(backend, [5, 6, 7]), 1, 2))  # a new request finds the change
    found = drafts_of(parts)
    assert found == fresh.draft(requests(Text(fresh, PROMPT), 3, 8)) != before


def test_a_paused_draft_ends_although_weights_change_all_the_time(tokenizer: object) -> None:
    backend = random_backend("llama", tokenizer)
    num_pauses = 0
    for _ in backend.draft_in_parts(requests(Text(backend, PROMPT), 2, 8)):
        num_pauses += 1
        train(backend)
        backend.draft(requests(Text(backend, [num_pauses, 6, 7]), 1, 2))
    assert num_pauses < 40


def test_a_draft_waits_for_the_first_masks_of_a_slow_grammar_in_a_pause(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = random_backend("llama", tokenizer)
    sampling = PLAIN.replace(grammar=RegexGrammar(pattern="(.|\\n)*"))
    text = Text(backend, PROMPT)
    asked = [text.request([0.3] * 4, sampling)]
    expected = backend.draft(asked)
    go_on = threading.Event()
    allowed = Grammars.allowed

    def slow(self: Grammars, *args: Any) -> Any:
        assert go_on.wait(60)
        return allowed(self, *args)

    monkeypatch.setattr(Grammars, "allowed", slow)
    parts = backend.draft_in_parts(asked)
    pause = next(pause for pause in parts if pause.waits_for is not None)
    assert pause.num_left == 4
    assert not pause.waits_for.done()
    go_on.set()
    assert drafts_of(parts) == expected


def test_a_draft_waits_for_the_masks_of_all_its_grammars_in_a_pause(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = random_backend("llama", tokenizer)
    text = Text(backend, PROMPT)
    grammars = [RegexGrammar(pattern=pattern) for pattern in PATTERNS]
    asked = [text.request([0.3] * 4, PLAIN.replace(grammar=grammar)) for grammar in grammars]
    expected = backend.draft(asked)
    late: list[Future[Any]] = []
    allowed_soon = Grammars.allowed_soon

    def held(self: Grammars, *args: Any) -> Any:
        mask = allowed_soon(self, *args)
        if len(late) == len(asked):
            return mask
        mask.result(60)
        late.append(Future())
        late[-1].set_running_or_notify_cancel()
        values.append(mask.result())
        return late[-1]

    values: list[Any] = []
    monkeypatch.setattr(Grammars, "allowed_soon", held)
    parts = backend.draft_in_parts(asked)
    pause = next(pause for pause in parts if pause.waits_for is not None)
    for place in (1, 0, 2):
        assert not pause.waits_for.done()
        late[place].set_result(values[place])
    assert pause.waits_for.done()
    assert drafts_of(parts) == expected
