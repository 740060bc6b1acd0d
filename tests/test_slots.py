"""Prefixes are read once, kept once, and found again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stars_engine import SamplingParams
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.caching.views import Rows
from stars_engine.config import TransformersModel
from tests.backend_parts import Fed, pool_of, random_backend

SAMPLING = SamplingParams(top_k=None, logit_bias={2: -float("inf")})
PROMPT = [1, *range(3, 40)]


@pytest.fixture
def backend(tokenizer: object) -> TransformersBackend:
    return random_backend("llama", tokenizer)


def requests(slot: object, count: int, size: int = 6) -> list[DraftRequest]:
    return [
        DraftRequest(slot, [(0.37 * (k + 1) * (i + 2)) % 1 for i in range(size)], SAMPLING)
        for k in range(count)
    ]


def test_a_segment_costs_its_steps_and_one_token(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = Fed(backend, monkeypatch)
    [slot] = backend.prefill([PROMPT])
    assert fed.take() == [(1, len(PROMPT))]
    drafts = backend.draft(requests(slot, 4))
    assert fed.take() == [(4, 1)] * 5  # the last token is not read unless it is kept
    backend.commit([(slot, drafts[2].token_ids)])
    assert fed.take() == [(1, 1)]
    assert slot.token_ids == [*PROMPT, *drafts[2].token_ids]


def test_what_is_kept_is_what_reading_it_again_would_give(backend: TransformersBackend) -> None:
    slot, other = backend.prefill([PROMPT, PROMPT[:20]])
    drafts = backend.draft([*requests(slot, 3), *requests(other, 2)])
    backend.commit([(slot, drafts[1].token_ids), (other, drafts[4].token_ids)])
    [again] = backend.prefill([[*slot.token_ids]])
    torch.testing.assert_close(slot.next_logits, again.next_logits, atol=1e-5, rtol=1e-5)
    assert backend.draft(requests(slot, 3)) == backend.draft(requests(again, 3))


def test_the_prefix_is_kept_once_however_many_candidates(backend: TransformersBackend) -> None:
    [slot] = backend.prefill([PROMPT])
    before = pool_of(backend).num_bytes
    for count in (1, 4, 16):
        backend.draft(requests(slot, count))
        assert pool_of(backend).num_bytes == before


def test_a_prompt_that_was_read_before_is_not_read_again(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    [slot] = backend.prefill([PROMPT])
    logits = slot.next_logits
    fed = Fed(backend, monkeypatch)
    [beside] = backend.prefill([PROMPT])  # copied: the first is in use
    assert fed.take() == [(1, 1)]
    del slot
    [after] = backend.prefill([[*PROMPT, 50, 51]])
    assert fed.take() == [(1, 2)]
    torch.testing.assert_close(beside.next_logits, logits, atol=1e-5, rtol=1e-5)
    del beside, after
    backend.prefill([[7, 8, 9]])
    assert fed.take() == [(1, 3)]


def test_slots_are_used_again(backend: TransformersBackend) -> None:
    """Within a budget; without one, what others may go on from is kept."""
    backend.limit_cache(4 * 64 * backend.bytes_per_token)
    for start in range(3, 30):
        slots: Sequence[Any] = backend.prefill([[start, start + 1], [start + 2] * 20])
        backend.draft([request for slot in slots for request in requests(slot, 2)])
        del slots
    assert len(list(pool_of(backend).slots())) <= 4


def test_a_prompt_is_known_though_others_came_between(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[start, *PROMPT] for start in range(40, 50)]
    for prompt in prompts:
        backend.prefill([prompt])
    fed = Fed(backend, monkeypatch)
    for prompt in prompts:
        backend.prefill([prompt])
    assert fed.take() == [(1, 1)] * len(prompts)


def test_a_stolen_slot_does_not_change_who_had_it(backend: TransformersBackend) -> None:
    """A new prompt takes over what an ended answer left; a live one is copied."""
    [live] = backend.prefill([PROMPT])
    wanted = backend.draft(requests(live, 2))
    for end in (50, 51, 52):
        [other] = backend.prefill([[*PROMPT[:30], end]])
        backend.commit([(other, [40, 41])])
    assert backend.draft(requests(live, 2)) == wanted


def test_rows_find_their_places() -> None:
    device = torch.device("cpu")
    assert Rows.of([0, 0, 1, 1], device).places is None
    rows = Rows.of([1, 0, 1], device)
    assert rows.places is not None
    assert (rows.most, rows.places.tolist()) == (2, [2, 0, 3])
    states = torch.arange(3.0)[:, None]
    assert rows.to_grid(states, 2)[:, 0].tolist() == [1, 0, 0, 2]
    assert torch.equal(rows.from_grid(rows.to_grid(states, 2)), states)


# --- somebody else's model ---


def test_other_weights_are_noticed(tokenizer: object) -> None:
    """A model that is trained between two requests: nothing read before is used."""
    backend = random_backend("llama", tokenizer)
    prompt = [1, *range(3, 40)]
    backend.prefill([prompt])
    with torch.no_grad():
        for parameter in backend.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    [slot] = backend.prefill([prompt])
    with torch.inference_mode():
        plain = backend.model(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(slot.next_logits, plain, atol=1e-4, rtol=1e-4)


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
def test_changes_that_leave_no_version_are_noticed(name: str, tokenizer: object) -> None:
    has_adapter, change = CHANGES[name]
    model = random_backend("llama", tokenizer).model
    if has_adapter:
        model = get_peft_model(model, lora())
    backend = TransformersBackend(backend_config(model, tokenizer))
    prompt = [1, *range(3, 40)]
    [before] = backend.prefill([prompt])
    old = before.next_logits
    with torch.no_grad():
        change(model)
    del before
    [slot] = backend.prefill([prompt])
    with torch.inference_mode():
        plain = model(torch.tensor([prompt])).logits[0, -1]
    tolerance = 5e-2 if name == "type" else 1e-4
    torch.testing.assert_close(slot.next_logits, plain, atol=tolerance, rtol=tolerance)
    if name not in ("adapter merged", "type"):
        assert not torch.allclose(slot.next_logits, old, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "implementation"),
    [("llama", "sdpa"), ("llama", "eager"), ("gpt_oss", "eager"), ("gemma2", "eager")],
)
def test_others_may_use_the_model_at_the_same_time(
    family: str, implementation: str, tokenizer: object
) -> None:
    """Two engines and their owner, on threads of their own: nobody sees the others' attention."""
    backend = random_backend(family, tokenizer)
    model = backend.model
    model.config._attn_implementation_internal = implementation
    ids = torch.tensor([[1, *range(3, 40)]])
    with torch.inference_mode():
        plain = model(ids).logits
    [slot] = backend.prefill([ids[0].tolist()])
    wanted = backend.draft(requests(slot, 3))
    problems: list[str] = []

    def owner() -> None:
        with torch.inference_mode():
            found = [model(ids).logits for _ in range(60)]
        problems.extend("owner" for logits in found if not torch.allclose(logits, plain, atol=1e-5))

    def engine() -> None:
        own = TransformersBackend(backend_config(model, tokenizer))
        for _ in range(12):
            [mine] = own.prefill([ids[0].tolist()])
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


# --- when memory ends ---


def test_room_that_cannot_be_had_costs_its_request_alone(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    [slot] = backend.prefill([PROMPT])
    wanted = backend.draft(requests(slot, 3))
    real = torch.Tensor.new_zeros

    def scarce(self: torch.Tensor, *shape: int, **options: Any) -> torch.Tensor:
        if len(shape) == 4 and shape[2] > 64:
            raise RuntimeError("out of memory")
        return real(self, *shape, **options)

    monkeypatch.setattr(torch.Tensor, "new_zeros", scarce)
    with pytest.raises(RuntimeError, match="out of memory"):
        backend.prefill([[5] * 100])
    assert backend.draft(requests(slot, 3)) == wanted
    [other] = backend.prefill([[7, 8, 9]])
    assert backend.draft(requests(other, 2))
