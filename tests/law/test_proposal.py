"""The proposal distribution: filters, penalties, bans, and rows without a token."""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stars_engine import (
    AlignParams,
    GenerationError,
    NoSchedule,
    SamplingParams,
    StarsEngine,
)
from stars_engine import sampling as proposals
from stars_engine.backends.base import DraftRequest
from stars_engine.errors import ConfigError
from stars_engine.sampling import (
    Proposal,
    inverse_cdf,
    keep_top_k,
    keep_top_p,
    largest,
    propose,
)
from tests.support.backends import random_backend


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.7, top_k=None),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.3, top_k=None, top_p=0.8),
        SamplingParams(temperature=1.0, top_k=20, top_p=0.9, min_p=0.05),
        SamplingParams(temperature=0.9, top_k=None, repetition_penalty=1.4),
    ],
)
def test_proposal_equals_the_processors_of_transformers(sampling: SamplingParams) -> None:
    torch.manual_seed(1)
    logits = torch.randn(6, 50, dtype=torch.float64) * 2
    prompt, completion = torch.randint(50, (6, 4)), torch.randint(50, (6, 3))
    counts = torch.zeros(6, 50, dtype=torch.long).scatter_add_(
        1, completion, torch.ones_like(completion)
    )
    in_prompt = torch.zeros(6, 50, dtype=torch.bool).scatter_(1, prompt, value=True)
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    expected = processors(torch.cat([prompt, completion], 1), logits.clone()).softmax(-1)
    got = _whole(propose(logits, sampling, counts=counts, in_prompt=in_prompt), 50)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-9)


def _whole(proposal: Proposal, vocab_size: int) -> torch.Tensor:
    """Probabilities of the whole vocabulary."""
    if proposal.ids is None:
        return proposal.probs
    assert (proposal.ids.diff() > 0).all()  # ascending, none twice
    whole = torch.zeros(len(proposal.probs), vocab_size, dtype=proposal.probs.dtype)
    return whole.scatter(1, proposal.ids, proposal.probs)


TRUNCATED = [
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"top_k": None, "top_p": 0.95},
    {"top_k": None, "top_p": 0.3, "min_p": 0.02},
    {"top_k": 40, "temperature": 0.3, "logit_bias": {3: 4.0}},
]


@pytest.mark.parametrize("values", TRUNCATED, ids=str)
@pytest.mark.parametrize("vocab_size", [300, 5003])
def test_a_shortlist_changes_nothing(values: dict, vocab_size: int, monkeypatch) -> None:
    """Few choices or the whole vocabulary: the same probabilities, the same draws."""
    torch.manual_seed(3)
    sampling = SamplingParams(**values)
    smooth, rough = torch.randn(5, vocab_size) * 3, torch.randn(5, vocab_size).bfloat16()
    banned = smooth.masked_fill(torch.rand(5, vocab_size) < 0.995, -torch.inf)
    banned[:, 7] = 0.0
    uniforms = torch.rand(5, dtype=torch.float64)
    for logits in (smooth, rough.float(), banned, smooth.round()):
        few = propose(logits, sampling)
        with monkeypatch.context() as patch:
            patch.setattr(proposals, "_shortlist", lambda *args: None)
            whole = propose(logits, sampling)
        assert whole.ids is None
        torch.testing.assert_close(_whole(few, vocab_size), whole.probs, atol=1e-12, rtol=1e-9)
        assert few.draw(uniforms).equal(whole.draw(uniforms))


def test_a_shortlist_is_made_where_there_are_no_ties() -> None:
    logits = torch.randn(5, 5003, generator=torch.Generator().manual_seed(1)) * 9
    sizes = [propose(logits, SamplingParams(**values)).probs.shape[1] for values in TRUNCATED]
    assert max(sizes) < 300
    ties = propose(logits.round(), SamplingParams(top_k=40))
    assert ties.ids is None


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_a_nucleus_among_the_top_k_needs_no_more_than_these_in_order(p: float) -> None:
    """However many tie with the last of them."""
    logits = torch.randn(6, 900, generator=torch.Generator().manual_seed(4)).double()
    logits[1], logits[2] = logits[1].round(), 0.0
    kept = keep_top_k(logits, 40)
    assert keep_top_p(kept, p, most=40).equal(keep_top_p(kept, p))


@pytest.mark.parametrize("vocab_size", [10, 640, 5003])
def test_the_largest_are_found_in_blocks(vocab_size: int) -> None:
    logits = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(2))
    logits[1, ::2] = -torch.inf
    values, ids = largest(logits, 9)
    assert values.equal(logits.topk(9).values)
    assert values.equal(logits.gather(1, ids))


def test_nothing_is_drawn_without_tokens() -> None:
    logits = torch.randn(3, 5003, generator=torch.Generator().manual_seed(2))
    logits[0], logits[1, 77] = -torch.inf, torch.nan
    uniforms = torch.full((3,), 0.5)
    for values in (*TRUNCATED, {"top_k": None}, {"temperature": 0}):
        tokens = propose(logits, SamplingParams(**values | {"logit_bias": {}})).draw(uniforms)
        assert (tokens >= 0).tolist() == [False, False, True]


def test_presence_and_frequency_count_the_completion_only() -> None:
    sampling = SamplingParams(
        temperature=1.0, top_k=None, presence_penalty=0.5, frequency_penalty=0.25
    )
    logits = torch.zeros(1, 3)
    counts, in_prompt = torch.tensor([[0, 1, 2]]), torch.tensor([[True, False, False]])
    got = propose(logits, sampling, counts=counts, in_prompt=in_prompt).probs
    expected = torch.tensor([[0.0, -0.75, -1.0]], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(got, expected)


def test_bias_bans_and_temperature_0() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    greedy = propose(logits, SamplingParams(temperature=0))
    assert _whole(greedy, 4).tolist() == [[0, 1, 0, 0]]  # the lowest id of equals
    biased = SamplingParams(temperature=0, logit_bias={3: 9.0})
    assert _whole(propose(logits, biased), 4).argmax().item() == 3
    banned = propose(logits, SamplingParams(top_k=None, temperature=1.0), banned_ids=[1, 2])
    assert banned.probs[0, 1:3].tolist() == [0, 0]


def test_inverse_cdf_never_draws_the_impossible() -> None:
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    uniforms = [0.0, 0.2499, 0.25, 0.9999999999999999]
    drawn = [inverse_cdf(probs, torch.tensor([u], dtype=torch.float64)).item() for u in uniforms]
    assert drawn == [1, 1, 3, 3]


def test_penalties_follow_their_row_and_are_rewound(engine: StarsEngine) -> None:
    """A huge frequency penalty forbids repeats inside a draft and across committed segments."""
    model = engine.model
    sampling = SamplingParams(temperature=1.0, top_k=5, frequency_penalty=1e4, max_tokens=40)
    align = AlignParams(schedule={"kind": "constant", "value": 0.5}, segment_len=8, max_attempts=3)
    [result] = engine.generate("The", sampling=sampling.replace(seed=1), align=align)
    assert result.usage.num_attempts > len(result.segments)
    assert len(set(result.token_ids)) == len(result.token_ids)
    request = DraftRequest([1, 9, 9], 3, [0.3] * 6, sampling)
    assert model.draft([request] * 3) == [model.draft([request])[0]] * 3


@pytest.mark.slow
def test_min_tokens_holds_back_the_end(engine: StarsEngine) -> None:
    align = AlignParams(schedule=NoSchedule(), segment_len=16)
    sampling = SamplingParams(seed=0, n=16, max_tokens=160)
    free = engine.generate("Bad", sampling=sampling, align=align)
    assert min(len(r.token_ids) for r in free) < 120
    held = engine.generate("Bad", sampling=sampling.replace(min_tokens=120), align=align)
    assert min(len(r.token_ids) for r in held) >= 120


# --- when there is no token to draw ---

NONE_BUT_END = dict.fromkeys((i for i in range(64) if i != 2), -float("inf"))


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (SamplingParams(logit_bias=NONE_BUT_END, min_tokens=3), "logit_bias"),
        (SamplingParams(logit_bias=NONE_BUT_END, min_tokens=3, temperature=0), "logit_bias"),
        (SamplingParams(stop_token_ids=range(64), min_tokens=1, top_p=0.9), "stop_token_ids"),
        (SamplingParams(temperature=1e-320, frequency_penalty=0.1), "temperature=1e-320"),
    ],
)
def test_a_row_without_a_token_fails_alone(
    tokenizer: object, sampling: SamplingParams, words: str
) -> None:
    backend = random_backend("llama", tokenizer)
    good = DraftRequest([3, 4], 2, [0.5] * 6, SamplingParams())
    error, ids = backend.draft([DraftRequest([5], 1, [0.5] * 6, sampling), good])
    assert isinstance(error, GenerationError)
    assert words in str(error)
    assert ids == backend.draft([good])[0]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_logits_that_are_nan_fail_their_row(
    tokenizer: object, temperature: float, top_p: float
) -> None:
    backend = random_backend("llama", tokenizer)
    backend.model.get_input_embeddings().weight.data[60] = float("nan")
    sampling = SamplingParams(temperature=temperature, top_p=top_p)
    good, bad = (DraftRequest(ids, len(ids), [0.5] * 3, sampling) for ids in ([3, 4], [60]))
    ids, error = backend.draft([good, bad])
    assert isinstance(error, GenerationError)
    assert "dtype='float32'" in str(error)
    assert 60 not in ids.token_ids
    assert ids == backend.draft([good])[0]


def test_end_tokens_outside_the_vocabulary_are_ignored(tokenizer: object) -> None:
    assert random_backend("llama", tokenizer, eos_token_id=[2, 64, 999]).end_ids == {2}


def test_a_bias_that_leaves_nothing_to_draw(engine: StarsEngine) -> None:
    banned = dict.fromkeys(range(4096), -float("inf"))
    with pytest.raises(ConfigError, match="leaves none to draw"):
        engine.generate("a", sampling=SamplingParams(logit_bias=banned))
    del banned[77]
    sampling = SamplingParams(logit_bias=banned, max_tokens=3)
    assert engine.generate("a", sampling=sampling)[0].token_ids == (77, 77, 77)


def test_the_tensors_of_a_bias_end_with_its_settings() -> None:
    num_tokens = 5077
    sampling = SamplingParams(logit_bias=dict.fromkeys(range(1, num_tokens + 1), -1.0))

    def tensors() -> list[torch.Tensor]:
        gc.collect()
        found = (each for each in gc.get_objects() if isinstance(each, torch.Tensor))
        return [each for each in found if each.shape == (num_tokens,)]

    propose(torch.zeros(1, num_tokens + 1), sampling)
    kept = tensors()
    propose(torch.zeros(1, num_tokens + 1), sampling)
    assert {*map(id, tensors())} == {*map(id, kept)}  # made once
    assert len(kept) == 2
    del sampling, kept
    assert not tensors()
