"""Decode steps of fixed shapes for CUDA graphs, run here kernel by kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from stars_engine import SamplingParams, sampling
from stars_engine.algorithm.candidate import Draft
from stars_engine.backends import draft_batch, selection
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.selection import ON_GPU, select_decoder
from stars_engine.backends.shared import SharedPrefixDecoder
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.backends.uncached import UncachedDecoder
from stars_engine.errors import GenerationError
from stars_engine.kv_cache import cuda_graphs
from stars_engine.kv_cache.cuda_graphs import shape_for
from tests.support.backends import Text, random_backend

SHARING = [
    *("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox"),
    *("opt", "phi3", "olmo2", "granite", "mixtral", "qwen3_moe", "gpt_oss", "cohere2", "stablelm"),
]
PLAIN = SamplingParams(top_k=20, top_p=0.9)
PENALIZED = SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, min_tokens=3)
LENGTHS = (37, 5, 18)


def with_graphs(backend: TransformersBackend) -> TransformersBackend:
    backend.decoder = SharedPrefixDecoder(backend.model, backend.context_len, use_graphs=True)
    return backend


def requests(texts: Sequence[Text], counts: Sequence[int], turn: int) -> list[DraftRequest]:
    return [
        text.request(
            [(0.37 * (k + 1) * (i + 2) + 0.11 * turn) % 1 for i in range(6)],
            (PLAIN, PENALIZED)[k % 2],
            lookahead=2,
        )
        for text, count in zip(texts, counts, strict=True)
        for k in range(count)
    ]


def run(backend: TransformersBackend) -> list[object]:
    """Three steps on three prefixes, with other numbers of candidates in each."""
    texts = [Text(backend, [1 + (7 * i) % 60 for i in range(n)]) for n in LENGTHS]
    found: list[object] = []
    for turn, counts in enumerate([(3, 1, 2), (1, 4, 4), (3, 1, 2)]):
        drafts = backend.draft(requests(texts, counts, turn))
        found.append(drafts)
        first = [sum(counts[:index]) for index in range(3)]
        kept = [drafts[index] for index in first]
        for text, draft in zip(texts, kept, strict=True):
            if isinstance(draft, Draft):
                text.accept(draft.token_ids)
        found.append([list(text.token_ids) for text in texts])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("unseen", [1, 4])
@pytest.mark.parametrize("family", SHARING)
def test_drafts_equal_those_without_a_cache(
    family: str, unseen: int, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at after each token, and after some, as on a GPU."""
    backend = random_backend(family, tokenizer)
    backend.decoder = UncachedDecoder(backend.model, backend.context_len)
    wanted = run(backend)
    monkeypatch.setattr(draft_batch, "num_unfetched_steps", lambda device: unseen)
    assert run(with_graphs(backend)) == wanted


def test_steps_of_similar_sizes_share_buffers(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    original = cuda_graphs.GraphRows

    def make(*arguments: object) -> object:
        made.append(arguments[-1])
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda_graphs, "GraphRows", make)
    backend = with_graphs(random_backend("llama", tokenizer))
    run(backend)
    assert len(made) == len(set(made)) == 2  # of the first and third step, and of the second
    assert {shape.num_prefixes for shape in made} == {4}
    backend.free_unused()
    run(backend)
    assert len(made) == 4


def test_prefixes_too_large_to_copy_are_read_in_place(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "_MAX_COPIED_BYTES", 0)
    backend = random_backend("llama", tokenizer)
    wanted = run(backend)
    assert run(with_graphs(backend)) == wanted


def test_unused_shapes_are_freed(tokenizer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = with_graphs(random_backend("llama", tokenizer))
    wanted = run(backend)
    decoder = backend.decoder
    assert isinstance(decoder, SharedPrefixDecoder)
    shapes = list(decoder._graphs._by_shape)
    assert len(shapes) == 2
    per_shape = 4 * shapes[0].width * backend.bytes_per_token
    monkeypatch.setattr(cuda_graphs, "_MAX_COPIED_BYTES", 2 * per_shape - 1)
    decoder._graphs.clear()
    assert run(backend) == wanted
    assert len(decoder._graphs._by_shape) == 1


def test_shapes_are_rounded_up_to_all_rows(tokenizer: object) -> None:
    backend = with_graphs(random_backend("llama", tokenizer))
    prompts = [[1, 2, 3], [4] * 70, [5], [6]]
    computed = backend.decoder.compute([(prompt, None) for prompt in prompts])
    prefixes = [each.prefix for each in computed]
    shape = shape_for([prefixes[0]] * 5 + [prefixes[1]], 7)
    assert shape == (8, 2, 8, 96, 7)
    shape = shape_for(prefixes * 9, 7)
    assert shape.num_rows == 40
    assert shape.num_prefixes * shape.most >= shape.num_rows


def test_a_row_without_a_token_fails_alone_even_if_detected_late(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_batch, "num_unfetched_steps", lambda device: 4)
    backend = with_graphs(random_backend("llama", tokenizer))
    text = Text(backend, [1, 2, 3])
    banned = SamplingParams(logit_bias=dict.fromkeys(range(64), -float("inf")))
    uniforms = [0.3] * 6
    drafts = backend.draft([text.request(uniforms, banned), text.request(uniforms, PLAIN)])
    assert isinstance(drafts[0], GenerationError)
    assert "the sampling settings leave no token" in str(drafts[0])
    assert drafts[1] == backend.draft([text.request(uniforms, PLAIN)])[0]


class DeviceCalls(TorchFunctionMode):
    """Records calls that would wait for a GPU, or make a tensor elsewhere than on it."""

    WAITING = (
        *("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__"),
        *("masked_select", "unique", "bincount", "one_hot", "argwhere"),
    )
    MAKING = ("tensor", "arange", "zeros", "ones", "full", "empty", "as_tensor", "rand", "eye")

    def __init__(self) -> None:
        self.active = False
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # A device object is that of the model, which is the CPU in this test.
        moves = name == "to" and "cpu" in (*args[1:], kwargs.get("device"))
        makes = name in self.MAKING and kwargs.get("device") is None
        picks = name == "__getitem__" and any(
            isinstance(part, torch.Tensor) and part.dtype == torch.bool
            for part in (args[1] if isinstance(args[1], tuple) else [args[1]])
        )
        if self.active and (name in self.WAITING or moves or makes or picks):
            self.found.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize("family", SHARING)
def test_nothing_between_two_tokens_waits_for_the_device(
    family: str, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = with_graphs(random_backend(family, tokenizer))
    monkeypatch.setattr(draft_batch, "num_unfetched_steps", lambda device: 99)
    step, fetch = cuda_graphs.GraphRows.step, draft_batch.DraftBatch._fetch
    num_steps = 0

    def counted(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        nonlocal num_steps
        num_steps += 1
        logits = step(self, tokens)
        calls.active = True  # from the first step on, until tokens are fetched
        return logits

    def last(self: Any) -> None:
        calls.active = False
        fetch(self)

    monkeypatch.setattr(sampling, "_shortlist", lambda *_: None)  # as on a GPU
    monkeypatch.setattr(cuda_graphs.GraphRows, "step", counted)
    monkeypatch.setattr(draft_batch.DraftBatch, "_fetch", last)
    texts = [Text(backend, [1 + (7 * i) % 60 for i in range(n)]) for n in LENGTHS]
    with DeviceCalls() as calls:
        backend.draft(requests(texts, (3, 1, 2), 0))
        assert num_steps == 7
        assert not calls.found
        calls.active = True
        assert torch.zeros(1).tolist() == [0.0]
        assert calls.found == ["zeros", "tolist"]


def test_graphs_are_tried_first_on_a_gpu(
    tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = random_backend("llama", tokenizer)
    assert backend.path == "shared prefix"
    monkeypatch.setattr(selection, "_is_on_one_gpu", lambda model: True)
    _, path = select_decoder(backend.model, backend.context_len)
    assert path == ON_GPU

    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs.GraphRows, "_run", fail)
    _, path = select_decoder(backend.model, backend.context_len)
    assert path.startswith("shared prefix (shared prefix in CUDA graphs raised RuntimeError")
