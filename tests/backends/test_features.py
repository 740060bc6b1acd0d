"""Features of drafts are those of plain passes over the text, whatever decoder computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stars_engine import SamplingParams
from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.errors import ModelLoadError
from stars_engine.hidden_states.probes import Probe
from tests.support.backends import DECODERS, Fed, Text, probe_of, random_backend

PLAIN = SamplingParams(temperature=1.0, top_k=None)
LENGTHS = (37, 5, 18)


def plainly(backend: TransformersBackend, probe: Probe, ids: list[int], start: int) -> Any:
    [states] = backend.read_states([ids], probe.layers)
    return probe(states[start:]).numpy()


def drafts_of(
    backend: TransformersBackend, texts: list[Text], counts: tuple[int, ...], **more: Any
) -> list[Draft]:
    uniforms = [[(0.37 * (k + 1) * (i + 2) + 0.1) % 1 for i in range(5)] for k in range(4)]
    asked = [
        replace(text.request(uniforms[k], PLAIN, lookahead=k % 2), **more)
        for text, count in zip(texts, counts, strict=True)
        for k in range(count)
    ]
    found = backend.draft(asked)
    assert all(isinstance(draft, Draft) for draft in found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rung", "family"),
    [
        *[(rung, family) for rung in DECODERS for family in ("llama", "gpt2")],
        ("shared", "gemma2"),
        ("graphs", "mistral"),
        ("forked", "mamba"),
        ("padded", "bloom"),
    ],
)
def test_features_are_those_of_plain_passes(rung: str, family: str, tokenizer: object) -> None:
    """In three steps; some drafts are accepted, one prefix is evicted between them."""
    backend = random_backend(family, tokenizer)
    backend.decoder = DECODERS[rung](backend.model, backend.context_len)
    first, second = probe_of(backend, (1, backend.num_layers)), probe_of(backend, (0,), 1)
    texts = [Text(backend, [1 + (7 * i) % 60 for i in range(n)]) for n in LENGTHS]
    for counts in ((3, 1, 2), (1, 4, 2), (2, 1, 1)):
        before = [list(text.token_ids) for text in texts]
        drafts = drafts_of(backend, texts, counts, probes=(first, second))
        owners = [index for index, count in enumerate(counts) for _ in range(count)]
        for owner, draft in zip(owners, drafts, strict=True):
            prefix = before[owner]
            ids = [*prefix, *draft.token_ids, *draft.lookahead_ids]
            for probe in (first, second):
                assert draft.features[probe].shape == (1 + len(ids) - len(prefix), probe.size)
                expected = plainly(backend, probe, ids, len(prefix) - 1)
                np.testing.assert_allclose(draft.features[probe], expected, atol=2e-4)
        for index in (0, 1):
            texts[index].accept(drafts[owners.index(index)].token_ids)
        texts[1].handle.release()


@pytest.mark.parametrize("rung", list(DECODERS))
def test_probes_change_no_draft(rung: str, tokenizer: object) -> None:
    """Those who ask for none get none."""
    plain = random_backend("llama", tokenizer, scale=4)
    probed = random_backend("llama", tokenizer, scale=4)
    for backend in (plain, probed):
        backend.decoder = DECODERS[rung](backend.model, backend.context_len)
    probe = probe_of(probed, (1,))
    found = []
    for backend in (plain, probed):
        texts = [Text(backend, [1 + (7 * i) % 60 for i in range(n)]) for n in LENGTHS]
        drafts: list[Draft] = []
        for counts in ((3, 1, 2), (1, 4, 2)):
            asked = {"probes": (probe,)} if backend is probed and drafts else {}
            new = drafts_of(backend, texts, counts, **asked)
            assert all(set(draft.features) == set(asked.get("probes", ())) for draft in new)
            drafts += new
            texts[0].accept(new[0].token_ids)
        found.append(drafts)
    assert found[0] == found[1]


def test_the_last_token_of_an_accepted_draft_is_computed_once(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a segment takes as many passes as it has tokens, with features and without."""
    backend = random_backend("llama", tokenizer)
    probe = probe_of(backend, (1,))
    text = Text(backend, list(range(3, 30)))
    fed = Fed(backend, monkeypatch)
    for turn in range(4):
        drafts = backend.draft(
            [replace(text.request([0.1 * k + 0.05] * 5, PLAIN), probes=(probe,)) for k in (1, 2, 3)]
        )
        shapes = fed.take()
        assert shapes == ([(1, 27)] if turn == 0 else []) + [(3, 1)] * 5
        text.accept(drafts[turn % 3].token_ids)


def test_probes_come_and_go(tokenizer: object) -> None:
    """A prefix cached before a probe came has no features of it."""
    backend = random_backend("llama", tokenizer)
    text = Text(backend, list(range(3, 30)))
    uniforms = [0.3, 0.6, 0.9]
    [before] = backend.draft([text.request(uniforms, PLAIN)])
    for _ in range(2):
        probe = probe_of(backend, (1,))
        [draft] = backend.draft([replace(text.request(uniforms, PLAIN), probes=(probe,))])
        assert draft == before
        ids = [*text.token_ids, *draft.token_ids]
        expected = plainly(backend, probe, ids, len(text.token_ids) - 1)
        np.testing.assert_allclose(draft.features[probe], expected, atol=1e-4)
        del draft, probe
        [again] = backend.draft([text.request(uniforms, PLAIN)])
        assert again == before
        assert backend._probed.current is None


def test_what_a_model_cannot_give_is_refused(tokenizer: object) -> None:
    backend = random_backend("llama", tokenizer)
    size = backend.hidden_size
    with pytest.raises(ModelLoadError, match=r"layers=\[9\] are not among.*0 to 2"):
        backend.attach(Probe((9,), torch.zeros(1, size), torch.zeros(1)))
    with pytest.raises(ModelLoadError, match=r"reads 7 numbers per token.*have"):
        backend.attach(Probe((1,), torch.zeros(1, 7), torch.zeros(1)))
    forward = backend.model.forward

    def without_states(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("output_hidden_states", None)
        return forward(*args, **kwargs)

    backend.model.forward = without_states
    with pytest.raises(ModelLoadError, match=r"returns no hidden states.*Hint"):
        backend.attach(Probe((1,), torch.zeros(1, size), torch.zeros(1)))


def test_rows_of_a_batch_are_padded_without_effect(tokenizer: object) -> None:
    backend = random_backend("llama", tokenizer)
    rows = [[3, 4, 5], [6], [7, 8, 9, 10, 11]]
    together = backend.read_states(rows, (0, 2))
    for row, states in zip(rows, together, strict=True):
        [alone] = backend.read_states([row], (0, 2))
        torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-4)
