"""Seeded chi-square through the real backend and a real transformers model, and two mutants.

The law of the loop over this model is known exactly: its proposal is read off the model's own
logits, and the closed form of tests/law/test_law_exact.py is applied to it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import pytest
import torch
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stars_engine import AlignParams, ConstantSchedule, SamplingParams
from stars_engine.algorithm.acceptance import acceptance_prob
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.algorithm.stars import StarsDecoding, apply_on_exhausted, judge
from stars_engine.algorithm.verification import DraftVerification
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import TransformersModel
from stars_engine.core.offline import stars
from stars_engine.types import SegmentEvent
from tests.support.rollouts import make_rollout

PIECES = ["a", "b", "c", "d"]
NUM_SAMPLES = 20_000
NUM_MUTANT_SAMPLES = 1_000  # enough for p-values far below that of a coincidence
TAU, BETA, MAX_ATTEMPTS = 0.8, 0.5, 3


class LetterReward:
    """Known rewards: a letter's weight, later letters counting more."""

    def score(self, inputs: Sequence[object]) -> list[float]:
        return [reward_of(item.text) for item in inputs]


def reward_of(text: str) -> float:
    weights = {"a": 0.9, "b": -0.6, "c": 0.3, "d": 0.0}
    return sum((1 + 0.5 * index) * weights[letter] for index, letter in enumerate(text))


@pytest.fixture(scope="module")
def backend() -> TransformersBackend:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(PIECES),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.25,
    )
    model = LlamaForCausalLM(config)
    letters = Tokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, []))
    letters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters)
    return TransformersBackend(TransformersModel(model=model, tokenizer=tokenizer))


def exact_law(backend: TransformersBackend) -> dict[tuple[int, ...], float]:
    """Two segments of one token, keep-best, by the closed form over the model's own softmax."""

    def segment(prefix: tuple[int, ...]) -> dict[int, float]:
        with torch.inference_mode():
            logits = backend.model(input_ids=torch.tensor([[0, *prefix]])).logits[0, -1]
        q = logits.double().softmax(-1).tolist()
        text = "".join(PIECES[token] for token in prefix)
        r = [reward_of(text + piece) for piece in PIECES]
        a = [acceptance_prob(reward, TAU, BETA) for reward in r]
        mean = sum(x * y for x, y in zip(q, a, strict=True))
        u = [x * (1 - y) for x, y in zip(q, a, strict=True)]
        law = {}
        for token in range(len(PIECES)):
            below = sum(x for x, reward in zip(u, r, strict=True) if reward < r[token])
            upto = sum(x for x, reward in zip(u, r, strict=True) if reward <= r[token])
            law[token] = q[token] * a[token] * (1 - (1 - mean) ** MAX_ATTEMPTS) / mean
            tie = upto - below
            if tie > 0:
                law[token] += u[token] / tie * (upto**MAX_ATTEMPTS - below**MAX_ATTEMPTS)
        return law

    law: dict[tuple[int, ...], float] = defaultdict(float)
    for first, p in segment(()).items():
        for second, p_next in segment((first,)).items():
            law[first, second] += p * p_next
    return law


def sample(
    backend: TransformersBackend, num_samples: int, noise: type[CounterNoise] = CounterNoise
) -> Counter:
    align = AlignParams(
        schedule=ConstantSchedule(value=TAU),
        beta=BETA,
        segment_len=1,
        max_attempts=MAX_ATTEMPTS,
        num_candidates=3,
    )
    sampling = SamplingParams(max_tokens=2, temperature=1.0, top_k=None)
    rollouts = [
        make_rollout(
            (0,),
            align=align,
            sampling=sampling,
            noise=noise(seed=11, prompt_ids=(0,), sample_index=index),
        )
        for index in range(num_samples)
    ]
    for _ in stars(rollouts, backend, LetterReward()):
        pass
    assert not any(rollout.error for rollout in rollouts)
    return Counter(tuple(rollout.token_ids) for rollout in rollouts)


def p_value(counts: Counter, law: dict[tuple[int, ...], float]) -> float:
    assert set(counts) <= set(law)
    num_samples = counts.total()
    # Outcomes too rare for the chi-square approximation are counted together.
    common = [outcome for outcome in sorted(law) if law[outcome] * num_samples >= 20]
    observed = [counts[outcome] for outcome in common]
    expected = [law[outcome] * num_samples for outcome in common]
    observed.append(num_samples - sum(observed))
    expected.append(num_samples - sum(expected))
    return float(chisquare(observed, expected).pvalue)


@pytest.fixture(scope="module", autouse=True)
def _many_at_once() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr("stars_engine.core.scheduler.MAX_ACTIVE", 2000)
    yield
    patch.undo()


@pytest.mark.slow
def test_real_backend_follows_the_exact_law(backend: TransformersBackend) -> None:
    assert p_value(sample(backend, NUM_SAMPLES), exact_law(backend)) > 0.001


@pytest.mark.slow
def test_a_mutant_that_keeps_the_best_accepted_candidate_is_detected(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_best_accepted(
        self: StarsDecoding, verification: DraftVerification
    ) -> SegmentEvent | None:
        rollout, accepted = verification.rollout, []
        while (outcome := verification.next_outcome()) is not None:
            draw = judge(rollout, verification.candidate, outcome)
            rollout.record(draw, outcome)
            if draw.attempt.verdict == "accepted":
                accepted.append(draw)
        if not accepted:
            return apply_on_exhausted(rollout)
        best = max(accepted, key=lambda draw: draw.attempt.reward)
        return rollout.keep(best.candidate, "accepted", best.attempt)

    monkeypatch.setattr(StarsDecoding, "verify", keep_best_accepted)
    assert p_value(sample(backend, NUM_MUTANT_SAMPLES), exact_law(backend)) < 1e-6


@pytest.mark.slow
def test_a_mutant_that_reuses_noise_between_attempts_is_detected(
    backend: TransformersBackend,
) -> None:
    class ReusedNoise(CounterNoise):
        def token_uniforms(self, *, position: int, attempt: int, count: int) -> Sequence[float]:
            return super().token_uniforms(position=position, attempt=0, count=count)

    assert p_value(sample(backend, NUM_MUTANT_SAMPLES, ReusedNoise), exact_law(backend)) < 1e-6
