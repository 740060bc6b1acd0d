"""Whole runs over small models of each family equal runs without a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from statistics import quantiles
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from benchmarks.tiny_models import FAMILIES, random_model
from stars_engine import (
    AlignParams,
    ClassifierReward,
    ConstantSchedule,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TokenIds,
)
from stars_engine.backends.selection import DECODERS
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.backends.uncached import UncachedDecoder
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.types import RewardInput, StarsResult
from tests.support.accounts import account
from tests.support.backends import random_backend

# The highest rung that each can take: attention of their own cannot share a prefix (Bloom and
# Falcon have no interface for it, DeepSeek-V3 keeps latents), recurrent states cannot be padded.
RUNGS = {
    **dict.fromkeys(FAMILIES, "shared prefix"),
    "bloom": "padded cache",
    "falcon": "padded cache",
    "deepseek_v3": "padded cache",
    "mamba": "forked cache",
    "mamba2": "forked cache",
    "qwen3_next": "forked cache",
}
# Those with a causal classification class whose attention can share a prefix.
CLASSIFIERS = sorted(
    family
    for family in FAMILIES
    if RUNGS[family] == "shared prefix" and family not in ("granite", "cohere2")
)

# Of the matrices, so that one token seen or not, here or there, changes what is drawn. Those that
# add little to what a token itself says need more, recurrent ones less.
SCALES = {**dict.fromkeys(RUNGS, 10.0), "falcon": 20.0, "mamba": 4.0, "mamba2": 3.0}

ALIGN = AlignParams(schedule=ConstantSchedule(value=0.65), beta=0.05, segment_len=4, max_attempts=3)
FREE = SamplingParams(max_tokens=12, temperature=1.0, top_k=None, seed=3)
# Windows are of 8 tokens, which three prompts exceed; two of them share 22, one has two answers.
# The drafts of the last two are longer than what is kept of them.
REQUESTS = [
    ([1, 5, 9], FREE.replace(logit_bias={2: 5.0}, min_tokens=5), ALIGN),
    ([1, *range(3, 30)], FREE.replace(temperature=0.9, top_k=12, top_p=0.9), ALIGN),
    (
        [1, *range(3, 24), 7, 50],
        FREE.replace(repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.2),
        ALIGN.replace(segment_len=5, on_exhausted="last"),
    ),
    ([7, 7, 8, 60, 33, 12, 4], FREE.replace(min_p=0.02, n=2), ALIGN.replace(lookahead=2)),
    (
        [1, *range(40, 60), 11, 13],
        FREE.replace(temperature=1.2),
        ALIGN.replace(segment_len=8, segment_end="sentence"),
    ),
]
COUNTS = (1, 4, "auto")


class Hashed:
    """A reward that depends on every token, so results distinguish rejected candidates, too."""

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        digests = (
            blake2b(repr((item.prompt.token_ids, item.token_ids, item.finished)).encode()).digest()
            for item in inputs
        )
        return [int.from_bytes(digest[:6]) / 2**48 for digest in digests]


class Forgetful(UncachedDecoder):
    """Reads one token wrong, four before the last."""

    def read(self, rows: Sequence[list[int]]) -> Any:
        return super().read([[*row[:-4], *([3] * len(row[-4:-3])), *row[-3:]] for row in rows])


def accounts(results: Sequence[StarsResult]) -> list[dict[str, object]]:
    return [account(result) for result in results]


def together(engine: StarsEngine, count: int | str, **test: Any) -> list[StarsResult]:
    prompts, samplings, aligns = zip(*REQUESTS, strict=True)
    aligns = [align.replace(num_candidates=count, **test) for align in aligns]
    return engine.generate([*map(TokenIds, prompts)], sampling=samplings, align=aligns)


def alone(engine: StarsEngine, count: int | str, **test: Any) -> list[StarsResult]:
    return [
        result
        for ids, sampling, align in REQUESTS
        for result in engine.generate(
            TokenIds(ids), sampling=sampling, align=align.replace(num_candidates=count, **test)
        )
    ]


def check_mixture(results: Sequence[StarsResult]) -> None:
    """Acceptance of about 0.4, forced segments, answers that end by themselves."""
    usages = [result.usage for result in results]
    attempts = sum(usage.num_attempts for usage in usages)
    accepted = sum(usage.num_accepted for usage in usages)
    assert accepted / attempts == pytest.approx(0.4, abs=0.25)
    assert sum(usage.num_forced for usage in usages) >= 1
    assert {result.finish_reason for result in results} == {"length", "stop"}


@pytest.fixture(scope="module", params=RUNGS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def backend(family: str, tokenizer: object) -> TransformersBackend:
    return random_backend(family, tokenizer, scale=SCALES[family])


@pytest.fixture(scope="module")
def stars(backend: TransformersBackend) -> Iterator[StarsEngine]:
    with StarsEngine(StarsConfig(align=ALIGN), model=backend, reward=Hashed()) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain(stars: StarsEngine, backend: TransformersBackend) -> list[StarsResult]:
    """Without a cache, one by one, one candidate at a time."""
    cached = backend.decoder
    backend.decoder = UncachedDecoder(backend.model, backend.context_len)
    try:
        return alone(stars, 1)
    finally:
        backend.decoder = cached


def test_each_family_uses_its_fastest_decoder(family: str, backend: TransformersBackend) -> None:
    assert backend.path.startswith(RUNGS[family])
    assert type(backend.decoder) is DECODERS[RUNGS[family]]


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_runs_equal_those_without_a_cache(
    stars: StarsEngine, plain: list[StarsResult], count: int | str
) -> None:
    check_mixture(plain)
    expected = accounts(plain)
    assert accounts(alone(stars, count)) == expected
    assert accounts(together(stars, count)) == expected


@pytest.mark.slow
def test_one_misread_token_changes_the_result(
    stars: StarsEngine, backend: TransformersBackend, plain: list[StarsResult]
) -> None:
    cached = backend.decoder
    backend.decoder = Forgetful(backend.model, backend.context_len)
    try:
        others = together(stars, 4)
    finally:
        backend.decoder = cached
    changed = [one.token_ids != other.token_ids for one, other in zip(others, plain, strict=True)]
    assert sum(changed) >= 4


# --- reward models ---


@pytest.fixture(scope="module")
def drafter(tokenizer: object) -> TransformersBackend:
    return random_backend("llama", tokenizer, scale=SCALES["llama"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_rewards_equal_those_of_whole_texts(
    kind: str, drafter: TransformersBackend, tokenizer: Any
) -> None:
    model = random_model(
        kind,
        AutoModelForSequenceClassification,
        scale=SCALES[kind],
        vocab_size=len(tokenizer),
        num_labels=1,
    )
    config = ClassifierReward(model=model, tokenizer=tokenizer, read="ids")
    reward = ClassifierRewardModel(config, drafter.codec.fingerprint())
    reader, reward._incremental = reward._incremental, None
    assert reader is not None, reward.path
    with StarsEngine(StarsConfig(align=ALIGN), model=drafter, reward=reward) as engine:
        samples = together(engine, 1, schedule=NoSchedule())
        found = [a.reward for r in samples for s in r.segments for a in s.attempts]
        # Which of two equal draws is the best would be up to rounding.
        schedule = ConstantSchedule(value=quantiles(found, n=10)[6])
        test = {"schedule": schedule, "on_exhausted": "last"}
        whole = alone(engine, 1, **test)
        verdicts = {a.verdict for r in whole for s in r.segments for a in s.attempts}
        assert verdicts == {"accepted", "rejected", "forced"}
        reward._incremental = reader
        for count in (1, 4):
            assert accounts(alone(engine, count, **test)) == accounts(whole)
            assert accounts(together(engine, count, **test)) == accounts(whole)
    read = sum(result.usage.num_reward_tokens for result in whole)
    assert 0 < reader.num_computed < 2 * read  # of four times that
