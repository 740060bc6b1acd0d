"""The prefix cache: each prefix is computed once, stored once, and found again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stars_engine import SamplingParams
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.shared import SharedPrefixDecoder
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import TransformersModel
from stars_engine.kv_cache import recent_rows
from stars_engine.kv_cache.layout import RowPlacement
from tests.support.backends import Fed, Text, pool_of, random_backend

SAMPLING = SamplingParams(top_k=None, logit_bias={2: -float("inf")})
PROMPT = [1, *range(3, 40)]


@pytest.fixture
def backend(tokenizer: object) -> TransformersBackend:
    return random_backend("llama", tokenizer)


def requests(text: Text, count: int, size: int = 6) -> list[DraftRequest]:
    return [
        text.request([(0.37 * (k + 1) * (i + 2)) % 1 for i in range(size)], SAMPLING)
        for k in range(count)
    ]


def started(backend: TransformersBackend, prompt: Sequence[int]) -> Text:
    text = Text(backend, prompt)
    text.next_logits()
    return text


def test_a_segment_costs_its_steps_and_one_token(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(backend, monkeypatch)
    text = Text(backend, PROMPT)
    drafts = backend.draft(requests(text, 4))
    assert fed.take() == [(1, len(PROMPT)), *[(4, 1)] * 5]  # the last token: only if it is kept
    text.accept(drafts[2].token_ids)
    again = backend.draft(requests(text, 4))
    assert fed.take() == [(1, 1), *[(4, 1)] * 5]
    assert text.handle.cached.prefix.token_ids == [*PROMPT, *drafts[2].token_ids]
    assert backend.draft(requests(text, 4)) == again
    assert fed.take() == [(4, 1)] * 5  # all were rejected: nothing is computed of the prefix


def test_cached_prefixes_equal_recomputed_ones(backend: TransformersBackend) -> None:
    text, other = Text(backend, PROMPT), Text(backend, PROMPT[:20])
    drafts = backend.draft([*requests(text, 3), *requests(other, 2)])
    text.accept(drafts[1].token_ids)
    other.accept(drafts[4].token_ids)
    for each in (text, other):
        kept = each.next_logits()
        backend.free_unused()
        fresh = random_backend("llama", backend.codec.tokenizer)
        again = Text(fresh, each.token_ids)
        torch.testing.assert_close(kept, again.next_logits(), atol=1e-5, rtol=1e-5)
        assert backend.draft(requests(each, 3)) == fresh.draft(requests(again, 3))


def test_the_prefix_is_stored_once_for_all_candidates(backend: TransformersBackend) -> None:
    text = started(backend, PROMPT)
    before = pool_of(backend).num_bytes
    for count in (1, 4, 16):
        backend.draft(requests(text, count))
        assert pool_of(backend).num_bytes == before


def test_a_cached_prompt_is_not_read_again(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = started(backend, PROMPT)
    logits = text.next_logits()
    fed = Fed(backend, monkeypatch)
    beside = started(backend, PROMPT)  # copied with its logits: the first is in use
    assert fed.take() == []
    assert beside.handle.cached.prefix is not text.handle.cached.prefix
    del text
    after = started(backend, [*PROMPT, 50, 51])
    assert fed.take() == [(1, 2)]
    torch.testing.assert_close(beside.next_logits(), logits, atol=1e-5, rtol=1e-5)
    del beside
    shorter = started(backend, PROMPT[:30])
    assert fed.take() == [(1, 1)]  # for its logits
    del after, shorter
    started(backend, [7, 8, 9])
    assert fed.take() == [(1, 3)]


def test_slots_are_reused(backend: TransformersBackend) -> None:
    """Within a budget; without one, what others may go on from is kept."""
    backend.limit_cache(4 * 64 * backend.bytes_per_token)
    for start in range(3, 30):
        texts = [Text(backend, [start, start + 1]), Text(backend, [start + 2] * 20)]
        backend.draft([request for text in texts for request in requests(text, 2)])
        del texts
    assert len(list(pool_of(backend).prefixes())) <= 4


def test_a_prompt_is_found_after_others_came_between(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[start, *PROMPT] for start in range(40, 50)]
    for prompt in prompts:
        backend.draft(requests(Text(backend, prompt), 1, size=2))
    fed = Fed(backend, monkeypatch)
    for prompt in prompts:
        started(backend, prompt)
    assert fed.take() == []
    for prompt in prompts:
        started(backend, [*prompt, 3])
    assert fed.take() == [(1, 1)] * len(prompts)


def test_an_evicted_slot_does_not_change_its_former_owner(backend: TransformersBackend) -> None:
    """A new prompt reuses what a finished answer left; a live one is copied."""
    live = Text(backend, PROMPT)
    wanted = backend.draft(requests(live, 2))
    for end in (50, 51, 52):
        other = Text(backend, [*PROMPT[:30], end])
        backend.draft(requests(other, 1))
        other.accept([40, 41])
        other.next_logits()
    assert backend.draft(requests(live, 2)) == wanted


def test_a_preempted_text_recomputes_only_what_was_evicted(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Text(backend, PROMPT)
    draft = backend.draft(requests(text, 3))[1]
    text.accept(draft.token_ids)
    fed = Fed(backend, monkeypatch)
    text.handle.release()
    text.next_logits()
    assert fed.take() == [(1, 1)]  # nothing was evicted: even the accepted row is still there
    text.handle.release()
    backend.free_unused()
    text.next_logits()
    assert fed.take() == [(1, len(text.token_ids))]


def test_swapped_handles_cost_only_time(backend: TransformersBackend) -> None:
    one, two = started(backend, PROMPT), started(backend, [*PROMPT[:25], 60, 61])
    wanted = [backend.draft(requests(text, 2)) for text in (one, two)]
    one.handle, two.handle = two.handle, one.handle
    assert [backend.draft(requests(text, 2)) for text in (one, two)] == wanted
    two.handle = one.handle
    together = backend.draft([*requests(one, 2), *requests(two, 2)])
    assert [together[:2], together[2:]] == wanted


@pytest.mark.parametrize("use_graphs", [False, True])
def test_a_candidate_of_an_earlier_pass_is_adopted(
    use_graphs: bool, backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All candidates rejected, twice; then the best of the first is kept after all."""
    backend.decoder = SharedPrefixDecoder(backend.model, backend.context_len, use_graphs=use_graphs)
    text, other = Text(backend, PROMPT), Text(backend, PROMPT[:9])
    first = backend.draft(requests(text, 4))
    for turn in (1, 2):
        later = [text.request([0.05 * turn + 0.1 * i for i in range(6)], SAMPLING)] * 4
        backend.draft(later)
    backend.draft(requests(other, 4))
    text.accept(first[3].token_ids)
    fed = Fed(backend, monkeypatch)
    kept = text.next_logits()
    assert fed.take() == [(1, 1)]
    backend.free_unused()
    with torch.inference_mode():
        plain = backend.model(input_ids=torch.tensor([text.token_ids])).logits[0, -1]
    torch.testing.assert_close(kept, plain, atol=1e-5, rtol=1e-5)


def test_old_rows_are_freed(backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Text(backend, PROMPT)
    first = backend.draft(requests(text, 2))
    for turn in range(recent_rows._MAX_PASSES):
        backend.draft([text.request([0.03 * turn + 0.1 * i for i in range(6)], SAMPLING)])
    rows = text.handle.cached.prefix.uncommitted
    assert sum(row.has_kv for row in rows) == recent_rows._MAX_PASSES
    text.accept(first[1].token_ids)
    fed = Fed(backend, monkeypatch)
    kept = text.next_logits()
    assert fed.take() == [(1, 6)]
    with torch.inference_mode():
        plain = backend.model(input_ids=torch.tensor([text.token_ids])).logits[0, -1]
    torch.testing.assert_close(kept, plain, atol=1e-5, rtol=1e-5)


def test_equal_prompts_are_computed_once(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(backend, monkeypatch)
    texts = [Text(backend, PROMPT) for _ in range(3)]
    drafts = backend.draft([request for text in texts for request in requests(text, 2)])
    assert fed.take() == [(1, len(PROMPT)), *[(6, 1)] * 5]
    assert drafts[:2] == drafts[2:4] == drafts[4:]
    assert len({id(text.handle.cached.prefix) for text in texts}) == 3
    for text, draft in zip(texts, drafts, strict=False):
        text.accept(draft.token_ids)
    wanted = [backend.draft(requests(text, 2)) for text in texts]
    assert [backend.draft(requests(text, 2)) for text in reversed(texts)] == wanted[::-1]


def test_rows_are_placed_in_a_grid() -> None:
    device = torch.device("cpu")
    assert RowPlacement.of([0, 0, 1, 1], device).cells is None
    rows = RowPlacement.of([1, 0, 1], device)
    assert rows.cells is not None
    assert (rows.most, rows.cells.tolist()) == (2, [2, 0, 3])
    states = torch.arange(3.0)[:, None]
    assert rows.to_grid(states, 2)[:, 0].tolist() == [1, 0, 0, 2]
    assert torch.equal(rows.from_grid(rows.to_grid(states, 2)), states)


# --- somebody else's model ---


def test_changed_weights_are_detected(tokenizer: object) -> None:
    """A model that is trained between two requests: nothing read before is used."""
    backend = random_backend("llama", tokenizer)
    prompt = [1, *range(3, 40)]
    started(backend, prompt)
    with torch.no_grad():
        for parameter in backend.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    logits = Text(backend, prompt).next_logits()
    with torch.inference_mode():
        plain = backend.model(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)


def write_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.3)


def scale(model: Any) -> None:
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            layer.scaling["default"] = 9.0


CHANGES: dict[str, tuple[bool, Callable[[Any], object]]] = {  # whether there is an adapter before
    "data": (False, write_data),
    "adapter added": (False, lambda model: model.add_adapter(lora())),
    "adapter scaled": (True, scale),
    "adapter merged": (True, lambda model: model.merge_adapter()),  # peft writes through `.data`
    "merged and scaled": (True, lambda model: (scale(model), model.merge_adapter())),
    "type": (False, lambda model: model.to(torch.bfloat16)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_without_a_version_counter_are_detected(name: str, tokenizer: object) -> None:
    has_adapter, change = CHANGES[name]
    model = random_backend("llama", tokenizer).model
    if has_adapter:
        model = get_peft_model(model, lora())
    backend = TransformersBackend(backend_config(model, tokenizer))
    prompt = [1, *range(3, 40)]
    old = Text(backend, prompt).next_logits()
    with torch.no_grad():
        change(model)
    logits = Text(backend, prompt).next_logits()
    with torch.inference_mode():
        plain = model(torch.tensor([prompt])).logits[0, -1]
    tolerance = 5e-2 if name == "type" else 1e-4
    torch.testing.assert_close(logits, plain, atol=tolerance, rtol=tolerance)
    if name not in ("adapter merged", "type"):
        assert not torch.allclose(logits, old, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "implementation"),
    [("llama", "sdpa"), ("llama", "eager"), ("gpt_oss", "eager"), ("gemma2", "eager")],
)
def test_others_may_use_the_model_at_the_same_time(
    family: str, implementation: str, tokenizer: object
) -> None:
    """Two engines and their owner on three threads do not affect each other's attention."""
    backend = random_backend(family, tokenizer)
    model = backend.model
    model.config._attn_implementation_internal = implementation
    ids = torch.tensor([[1, *range(3, 40)]])
    with torch.inference_mode():
        plain = model(ids).logits
    wanted = backend.draft(requests(Text(backend, ids[0].tolist()), 3))
    problems: list[str] = []

    def owner() -> None:
        with torch.inference_mode():
            found = [model(ids).logits for _ in range(60)]
        problems.extend("owner" for logits in found if not torch.allclose(logits, plain, atol=1e-5))

    def engine() -> None:
        own = TransformersBackend(backend_config(model, tokenizer))
        for _ in range(12):
            mine = Text(own, ids[0].tolist())
            if own.draft(requests(mine, 3)) != wanted:
                problems.append("engine")

    threads = [threading.Thread(target=work) for work in (owner, engine, engine)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert model.config._attn_implementation == implementation


def backend_config(model: Any, tokenizer: object) -> TransformersModel:
    return TransformersModel(model=model, tokenizer=tokenizer)


# --- out of memory ---


def test_a_failed_allocation_fails_only_its_request(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Text(backend, PROMPT)
    wanted = backend.draft(requests(text, 3))
    real = torch.Tensor.new_zeros

    def scarce(self: torch.Tensor, *shape: int, **options: Any) -> torch.Tensor:
        if len(shape) == 4 and shape[2] > 64:
            raise RuntimeError("out of memory")
        return real(self, *shape, **options)

    monkeypatch.setattr(torch.Tensor, "new_zeros", scarce)
    with pytest.raises(RuntimeError, match="out of memory"):
        started(backend, [5] * 100)
    assert backend.draft(requests(text, 3)) == wanted
    assert backend.draft(requests(Text(backend, [7, 8, 9]), 2))
