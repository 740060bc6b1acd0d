"""The local backend against transformers itself, on small real and random models."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks.tiny_models import FAMILIES
from stars_engine import (
    AlignParams,
    ContextOverflowError,
    NoSchedule,
    PromptError,
    SamplingParams,
    StarsEngine,
    TokenIds,
)
from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.forked import ForkingDecoder
from stars_engine.backends.padded import PaddedDecoder
from stars_engine.backends.shared import SharedPrefixDecoder
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.backends.uncached import UncachedDecoder
from stars_engine.errors import ConfigError
from stars_engine.testing import check_backend
from tests.support.backends import Text, random_backend


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_drafts_as_it_does_alone(family: str, tokenizer: object) -> None:
    backend = random_backend(family, tokenizer)
    prompts = [[1, 5, 9], list(range(3, 30)), [7], [4, 4, 8, 9, 10, 3]]
    check_backend(backend, prompts)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "gpt_oss"])
def test_cached_logits_equal_uncached_ones(family: str, tokenizer: object) -> None:
    model = random_backend(family, tokenizer).model
    prompts = [list(range(3, 30)), [7, 8, 9]]
    with torch.inference_mode():
        runs = []
        for decoder in (PaddedDecoder(model), SharedPrefixDecoder(model), UncachedDecoder(model)):
            prefixes = decoder.compute([(prompt, None) for prompt in prompts])
            grown = [[*prompt, 5, 6, 7, 8] for prompt in prompts]
            prefixes = decoder.compute(list(zip(grown, prefixes, strict=True)))
            logits = [torch.stack([prefix.last_output for prefix in prefixes])]
            branches = decoder.branch([prefixes[0], prefixes[1], prefixes[0]], 3)
            logits += [branches.step(torch.tensor([3, 4, 5])) for _ in range(3)]
            runs.append(torch.cat(logits))
    for run in runs[:2]:
        torch.testing.assert_close(run, runs[2], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_contract_on_real_models(
    tinystories: TransformersBackend, stories260k: TransformersBackend
) -> None:
    for backend in (tinystories, stories260k):
        check_backend(backend, [[1, 50, 60], [1], [1, 9, 8, 7, 6, 5, 4, 3]])


def test_end_ids_may_be_a_list(stories260k: TransformersBackend) -> None:
    assert stories260k.end_ids == {1, 2}
    assert stories260k.is_end(1, SamplingParams())
    assert stories260k.is_end(77, SamplingParams(stop_token_ids=[77]))
    assert not stories260k.is_end(77, SamplingParams())


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize(
    "decoder", [SharedPrefixDecoder, PaddedDecoder, ForkingDecoder, UncachedDecoder]
)
def test_a_finished_row_reads_nothing_beyond_the_context(
    family: str, decoder: type, tokenizer: object
) -> None:
    """Learned positions end with the context: 9 tokens of the long row, 32 of the short one."""
    backend = random_backend(family, tokenizer, n_positions=64, max_position_embeddings=64)
    assert backend.context_len == 64
    backend.decoder = decoder(backend.model, backend.context_len)
    texts = [Text(backend, list(range(3, 58))), Text(backend, [7, 8])]
    sampling = SamplingParams(logit_bias={2: -float("inf")}, top_k=None)
    requests = [
        text.request([0.1 + 0.02 * i for i in range(size)], sampling)
        for text, size in zip(texts, (9, 32), strict=True)
    ]
    together = backend.draft(requests)
    assert [len(draft.token_ids) for draft in together] == [9, 32]
    assert together == [backend.draft([request])[0] for request in requests]


def test_longrope_is_read_up_to_its_original_context(
    tokenizer: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond it the rotary factors depend on the longest row of the batch."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    backend = random_backend(
        "phi3",
        tokenizer,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 32,
            **factors,
        },
    )
    assert backend.context_len == 32
    assert "at most 32 tokens instead of 128" in caplog.text
    texts = [Text(backend, list(range(3, 27))), Text(backend, [7, 8])]
    requests = [
        text.request([0.5] * size, SamplingParams(top_k=None))
        for text, size in zip(texts, (8, 30), strict=True)
    ]
    assert backend.draft(requests) == [backend.draft([request])[0] for request in requests]


# --- text ---


def test_an_emoji_split_over_segments_is_held_back(engine: StarsEngine) -> None:
    """Byte-level tokens: each emoji is several tokens, each segment one token."""
    model = engine.model
    text = " \U0001f642 fine \U0001f600"
    ids = model.codec.encode_prompt(text)[1:]
    assert len(ids) > len(text)

    class FixedOutputModel:
        """The real model and tokenizer, writing given tokens."""

        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            return [Draft((ids[request.num_completion_tokens],)) for request in requests]

    seen: list[str] = []
    config = engine.config.replace(align=AlignParams(schedule=NoSchedule(), segment_len=1))

    class Reward:
        def score(self, inputs: Sequence) -> list[float]:
            seen.extend(item.text for item in inputs)
            return [0.0] * len(inputs)

    dictated = StarsEngine(config, model=FixedOutputModel(), reward=Reward())
    sampling = SamplingParams(max_tokens=len(ids))
    events = list(dictated.stream("A", sampling=sampling))
    assert "".join(event.text for event in events) == text
    assert all("\ufffd" not in part for part in [*seen, *(event.text for event in events)])
    assert "" in [event.text for event in events]  # something waited
    cut = list(dictated.stream("A", sampling=sampling.replace(max_tokens=len(ids) - 1)))
    assert cut[-1].result.text == " \U0001f642 fine "


@pytest.mark.slow
def test_a_control_token_in_a_prompt_is_text(engine: StarsEngine) -> None:
    typed = engine.model.codec.encode_prompt("good<|endoftext|>")
    assert not engine.model.end_ids & set(typed)
    [result] = engine.generate("good<|endoftext|> movie", sampling=SamplingParams(seed=1))
    assert result.usage.num_prompt_tokens > 5
    assert result.text


def test_an_empty_prompt_starts_with_the_begin_token(engine: StarsEngine) -> None:
    [result] = engine.generate("", sampling=SamplingParams(seed=1, max_tokens=16))
    assert result.usage.num_prompt_tokens == 1
    assert result.token_ids


# --- limits and bad input ---


@pytest.mark.slow
def test_context_overflow_is_raised_before_any_work_or_clamped(engine: StarsEngine) -> None:
    long = TokenIds([5] * 500)
    with pytest.raises(ContextOverflowError, match=r"500 tokens.*512.*at most 12"):
        engine.generate(long)
    [result] = engine.generate(long, sampling=SamplingParams(seed=1, on_overflow="clamp"))
    assert len(result.token_ids) <= 12
    with pytest.raises(ContextOverflowError, match="shorten the prompt"):
        engine.generate(TokenIds([5] * 512), sampling=SamplingParams(on_overflow="clamp"))
    ok, bad = engine.generate(
        ["fine", long], sampling=SamplingParams(max_tokens=16), return_exceptions=True
    )
    assert ok.text
    assert isinstance(bad, ContextOverflowError)


def test_ids_outside_the_vocabulary(engine: StarsEngine) -> None:
    with pytest.raises(PromptError, match="4096"):
        engine.generate(TokenIds([4096]))
    with pytest.raises(ConfigError, match=r"logit_bias.*9999"):
        engine.generate("a", sampling=SamplingParams(logit_bias={9999: 1.0}))
