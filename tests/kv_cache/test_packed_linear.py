"""Linear layers with packed weights: equal products, in our passes only."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from torch.nn.utils import parametrizations
from torch.testing._internal.two_tensor import TwoTensor

from stars_engine.kv_cache import packed_linear as packing
from stars_engine.kv_cache.packed_linear import PackedLinears
from stars_engine.kv_cache.weight_fingerprint import WeightFingerprint


def layers(dtype: torch.dtype = torch.float32) -> torch.nn.Sequential:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(24, 40), torch.nn.Linear(40, 16, bias=False)
    return torch.nn.Sequential(first, torch.nn.Tanh(), second).to(dtype)


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MIN_WEIGHTS", 0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each packed product."""
    rows: list[int] = []
    multiply = packing._multiply
    for dtype in packing._DTYPES:  # tried out before anything is counted
        packing._works(dtype)

    def count(states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        rows.append(states.numel() // states.shape[-1])
        return multiply(states, *others)

    monkeypatch.setattr(packing, "_multiply", count)
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((1, 1, 24), [1]),
        ((8, 1, 24), [8]),
        ((3, 3, 24), [10]),
        ((3, 24), [3]),
        ((24,), [1]),
        ((0, 1, 24), [1]),
        ((2, 65, 24), [64, 64, 2]),  # in float32, the layer's own kernel
    ],
)
@torch.inference_mode()
def test_products_equal_those_of_the_layers(
    shape: tuple[int, ...], rows: list[int], dtype: torch.dtype, counted: list[int]
) -> None:
    model, states = layers(dtype), torch.randn(*shape, generator=torch.Generator()).to(dtype)
    plain = model(states)
    with PackedLinears(model)():
        found = model(states)
    is_left = dtype == torch.float32 and sum(rows) > packing._SIZES[-1]
    assert counted == ([] if is_left else rows * 2)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found, plain, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_kernel_is_compiled_for_few_numbers_of_rows(
    dtype: torch.dtype, counted: list[int]
) -> None:
    model = layers(dtype)
    with PackedLinears(model)():
        for num_rows in range(1, 300):
            model(torch.randn(num_rows, 24).to(dtype))
    assert set(counted) == set(packing._SIZES)
    assert len(packing._SIZES) < 20


@torch.no_grad()
def test_a_changed_weight_is_packed_again() -> None:
    model, states = layers(), torch.randn(2, 24)
    packed = PackedLinears(model)
    with packed():
        model(states)
    model[0].weight.mul_(-2)
    model[2].weight = torch.nn.Parameter(torch.randn(16, 40))
    plain = model(states)
    with packed():
        torch.testing.assert_close(model(states), plain, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_two_users_of_a_model_share_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, lay_out = layers(), [], packing._lay_out
    monkeypatch.setattr(packing, "_lay_out", lambda weight: made.append(1) or lay_out(weight))
    users = [PackedLinears(model) for _ in range(3)]
    for packed in users:
        with packed():
            model(torch.randn(1, 24))
    assert len(made) == 2


def test_other_threads_use_the_original_weights(counted: list[int]) -> None:
    model, states = layers(), torch.randn(2, 24)
    plain = model(states)
    found = []
    with PackedLinears(model)():
        thread = threading.Thread(target=lambda: found.append(model(states)))
        thread.start()
        thread.join()
    assert counted == []
    assert torch.equal(found[0], plain)
    found[0].sum().backward()  # with gradients, as ever
    assert model[0].weight.grad is not None


@torch.inference_mode()
def test_a_copy_made_during_a_pass_is_independent() -> None:
    model, states = layers(), torch.randn(2, 24)
    with PackedLinears(model)():
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        torch.testing.assert_close(other(states), model(states), atol=1e-5, rtol=1e-5)
        for layer in (other[0], other[2]):
            layer.weight.zero_()
        other[0].bias.zero_()
        assert other(states).abs().max() == 0
        assert model(states).abs().max() > 0


@torch.inference_mode()
def test_a_layer_that_is_hooked_later_keeps_its_hook(counted: list[int]) -> None:
    model = layers()
    packed = PackedLinears(model)
    model[0].forward = lambda states: torch.zeros(2, 40)  # type: ignore[method-assign]
    with packed():
        assert model(torch.randn(2, 24)).abs().max() == 0
    assert "forward" in model[0].__dict__
    assert counted == [2]


@torch.inference_mode()
def test_packed_weights_are_freed_with_their_last_user() -> None:
    model = layers()
    users = [PackedLinears(model) for _ in range(2)]
    for packed in users:
        with packed():
            model(torch.randn(1, 24))
    held = weakref.ref(users[0]._forwards[model[0]].packed)
    assert held() is users[1]._forwards[model[0]].packed
    users.pop()
    assert held() is not None
    users.clear()
    del packed
    gc.collect()
    assert held() is None


def test_the_model_is_left_unchanged() -> None:
    model = layers()
    before = [dict(layer.__dict__) for layer in model]
    with pytest.raises(ZeroDivisionError), torch.inference_mode(), PackedLinears(model)():
        raise ZeroDivisionError
    assert [dict(layer.__dict__) for layer in model] == before
    pickle.dumps(copy.deepcopy(model))


@torch.inference_mode()
def test_layers_with_custom_forwards_are_left_alone(counted: list[int]) -> None:
    class Custom(torch.nn.Linear):
        pass

    hooked = torch.nn.Linear(24, 24)
    hooked.forward = lambda states: states + 1  # type: ignore[method-assign]
    model = torch.nn.Sequential(
        Custom(24, 24),
        parametrizations.weight_norm(torch.nn.Linear(24, 24)),
        torch.nn.Linear(24, 24).double(),
        hooked,
    )
    states = torch.randn(2, 24)
    with PackedLinears(model)():
        model[:2](states)
        assert torch.equal(hooked(states), states + 1)
        model[2](states.double())
    assert counted == []
    assert "forward" in hooked.__dict__


@torch.inference_mode()
def test_a_small_layer_is_not_packed(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MIN_WEIGHTS", 24 * 40)
    model = layers()
    with PackedLinears(model)():
        model(torch.randn(1, 24))
    assert counted == [1]  # the first is large enough, the second is not


@torch.inference_mode()
def test_a_model_too_large_for_a_copy_is_not_packed(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_most_bytes", lambda: 4 * (24 * 40 + 40 * 16) - 1)
    model = layers()
    with PackedLinears(model)():
        model(torch.randn(1, 24))
    assert counted == []


@torch.inference_mode()
def test_without_the_kernel_nothing_is_packed(
    counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operation")

    monkeypatch.setattr(packing, "_lay_out", missing)
    packing._works.cache_clear()
    try:
        model = layers()
        with PackedLinears(model)():
            model(torch.randn(1, 24))
    finally:
        packing._works.cache_clear()
    assert counted == []


@torch.no_grad()
def test_weights_of_several_tensors_stay_as_they_are_and_are_watched() -> None:
    """As quantized weights of torchao, which hold integers and scales."""
    model = layers()
    pair = TwoTensor(torch.ones(40, 24), torch.ones(40, 24))
    model[0].weight = torch.nn.Parameter(pair)
    assert PackedLinears(model)._layers == [model[2]]
    fingerprint = WeightFingerprint([model])
    assert not fingerprint.has_changed(thorough=True)
    model[0].weight.b.neg_()
    assert fingerprint.has_changed(thorough=False)
    model[0].weight.a.data.neg_()
    assert not fingerprint.has_changed(thorough=False)
    assert fingerprint.has_changed(thorough=True)
