"""Incremental rewards: equal to plain passes, and no token is read twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.tiny_models import random_model
from stars_engine import (
    AlignParams,
    ClassifierReward,
    ConstantSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TokenIds,
    YesNoReward,
)
from stars_engine.kv_cache import recent_rows
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rewards.encoding import EncodedInput
from stars_engine.rewards.incremental import IncrementalRunner
from stars_engine.rewards.yes_no import YesNoRewardModel
from tests.support.backends import Fed, pool_of, random_backend
from tests.support.incremental import Ids, check, reader_of
from tests.support.marks import slow_but_each


def classifier(family: str, tokenizer: object, **more: Any) -> ClassifierRewardModel:
    model = random_model(
        family, AutoModelForSequenceClassification, vocab_size=4096, num_labels=1, **more
    )
    config = ClassifierReward(model=model, tokenizer=tokenizer, read="ids")
    return ClassifierRewardModel(config)


def read(reader: IncrementalRunner, rows: list[Ids]) -> list[torch.Tensor]:
    return reader.run([EncodedInput(ids) for ids in rows])


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "gemma2", "qwen3", "gpt2", "gpt_neox", "opt", "phi3"]
)
def test_families_that_read_only_new_tokens(family: str, tokenizer: object) -> None:
    reward = classifier(family, tokenizer)
    assert reward.path == "new tokens only"
    check(reward, [[1, *range(3, 30), token] for token in (5, 6, 7)])


@pytest.mark.parametrize("family", ["bloom", "falcon", "deepseek_v3", "qwen3_next"])
def test_other_models_say_why_they_read_whole_texts(family: str, tokenizer: object) -> None:
    reward = classifier(family, tokenizer)
    assert reward._incremental is None
    assert reward.path.startswith("whole texts (")


def random_ids(rng: random.Random, count: int) -> Ids:
    return [rng.randrange(3, 60) for _ in range(count)]


def grown(rng: random.Random, row: EncodedInput) -> EncodedInput:
    """More tokens; the last point moves or stays, or all of them are others."""
    longer = [*row.ids, *random_ids(rng, rng.randrange(1, 9))]
    end = len(longer) - 1
    marks = {*row.marks[: len(row.marks) - rng.randrange(2)]}
    if rng.random() < 0.1:
        marks = {*rng.sample(range(end + 1), min(3, end))}
    inner = rng.sample(range(len(row.ids), end + 1), rng.randrange(2))
    return EncodedInput(longer, (*sorted({*marks, *inner} - {end}), end))


@pytest.mark.parametrize("seed", slow_but_each(4, range(8)))
def test_rows_in_any_order(seed: int, tokenizer: object) -> None:
    """Answers that grow, are rejected, share prompts, restart and return, in any order."""
    rng = random.Random(seed)
    reward = classifier("llama", tokenizer)
    reward.limit_cache(4 * 128 * reward.bytes_per_token)  # prefixes are evicted all the time

    prompts = [random_ids(rng, rng.randrange(1, 40)) for _ in range(3)]
    answers = [EncodedInput(rng.choice(prompts)) for _ in range(6)]
    for _ in range(12):
        chosen = rng.sample(range(6), rng.randrange(1, 6))
        candidates = {
            index: [grown(rng, answers[index]) for _ in range(rng.randrange(1, 5))]
            for index in chosen
        }
        check(reward, [row for rows in candidates.values() for row in rows])
        for index, rows in candidates.items():
            happens = rng.random()
            if happens < 0.6:
                answers[index] = rng.choice(rows)
            elif happens < 0.7:  # another tokenizer takes some back
                shorter = [*answers[index].ids[: -rng.randrange(1, 4)], *random_ids(rng, 3)][:90]
                marks = [mark for mark in answers[index].marks if mark < len(shorter) - 1]
                answers[index] = EncodedInput(shorter, (*marks, len(shorter) - 1))
            elif happens < 0.8:
                answers[index] = EncodedInput(rng.choice(prompts))
            elif happens < 0.9:  # some are asked for again, as they were
                check(reward, rows)
            if len(answers[index].ids) > 100:
                answers[index] = EncodedInput(rng.choice(prompts))


def test_tokens_of_a_candidate_are_read_once(tokenizer: object) -> None:
    reader = reader_of(classifier("llama", tokenizer))
    prompt = [1, *range(3, 40)]
    read(reader, [prompt])
    assert (reader.num_computed, reader.num_prefills) == (len(prompt), 1)
    kept = prompt
    for segment in range(3):
        rows = [[*kept, *[10 + segment + k] * 8] for k in range(4)]
        read(reader, rows)
        read(reader, [[*kept, *[30 + segment] * 8]])  # more candidates for the same segment
        assert reader.num_computed == len(prompt) + (segment + 1) * 5 * 8
        kept = rows[2]
    assert reader.num_prefills == 1


def test_cached_rows_are_not_read_again(tokenizer: object) -> None:
    reader = reader_of(classifier("llama", tokenizer))
    prompt = [1, *range(3, 40)]
    [first] = read(reader, [prompt])
    fed = reader.num_computed
    assert torch.equal(read(reader, [prompt])[0], first)
    assert reader.num_computed == fed


def test_two_answers_share_their_prompt(tokenizer: object) -> None:
    reward = classifier("llama", tokenizer)
    reader = reader_of(reward)
    prompt = [1, *range(3, 40)]
    one, two = [*prompt, *[5] * 8], [*prompt, *[6] * 8]
    check(reward, [one, two])
    check(reward, [[*one, *[7] * 8], [*two, *[8] * 8], [*two, *[9] * 8]])
    assert (reader.num_computed, reader.num_prefills) == (len(prompt) + 5 * 8, 1)


def test_a_judge_that_answers_yes_or_no(tokenizer: object) -> None:
    model = random_model("llama", vocab_size=4096)
    config = YesNoReward(model=model, tokenizer=tokenizer, template="{prompt}{completion} good?")
    reward = YesNoRewardModel(config)
    stem = [1, *range(3, 40)]
    rows = [[*stem, *[50 + k] * 6, 9, 9] for k in range(3)]
    check(reward, rows)
    check(reward, [[*stem, *[51] * 6, *[60 + k] * 6, 9, 9] for k in range(3)])
    assert reader_of(reward).num_computed == len(stem) + 3 * 8 + 3 * 8


@pytest.mark.slow
@pytest.mark.parametrize("num_candidates", [1, 4])
def test_the_engine_reads_each_candidate_once(num_candidates: int) -> None:
    """Prompt and candidates: nothing else is read, whatever is accepted."""
    align = AlignParams(
        schedule=ConstantSchedule(value=1.0),
        segment_len=8,
        max_attempts=4,
        num_candidates=num_candidates,
        on_exhausted="last",
    )
    with StarsEngine(StarsConfig(align=align)) as engine:
        reader = reader_of(engine.reward)
        [result] = engine.generate("The film was", sampling=SamplingParams(max_tokens=48, seed=3))
        usage = result.usage
        drafted = usage.num_drafted_tokens + usage.num_surplus_tokens
        assert usage.num_attempts > len(result.segments)
        prompt = len(engine.model.codec.encode_prompt("The film was"))
        assert reader.num_computed == prompt + drafted
        assert reader.num_prefills == 1


@pytest.fixture
def pair(tokenizer: object) -> Iterator[StarsEngine]:
    """A language model and a reward model, both with caches that count; answers never end early."""
    align = AlignParams(
        schedule=ConstantSchedule(value=0.0), segment_len=4, max_attempts=16, on_exhausted="last"
    )
    sampling = SamplingParams(max_tokens=12, top_k=None, seed=6, logit_bias={2: -float("inf")})
    config = StarsConfig(align=align, sampling=sampling)
    backend = random_backend("llama", tokenizer)
    reward = classifier("llama", tokenizer, scale=10.0)
    with StarsEngine(config, model=backend, reward=reward) as engine:
        yield engine


@pytest.mark.parametrize("num_candidates", [1, 4])
def test_a_prompt_is_read_once_by_each_model(
    pair: StarsEngine, num_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second request with the prompt costs the language model one token of it."""
    fed = Fed(pair.model, monkeypatch)
    reader = reader_of(pair.reward)
    prompt = TokenIds([1, *range(3, 40)])
    align = pair.config.align.replace(num_candidates=num_candidates)
    num_computed = 0
    # Under these seeds no two drafts begin alike; what they share is not read again either.
    for prompt_len, seed in ((38, 6), (1, 7), (1, 8)):
        sampling = pair.sampling.replace(seed=seed)
        [result] = pair.generate(prompt, sampling=sampling, align=align)
        usage = result.usage
        drafted = usage.num_drafted_tokens + usage.num_surplus_tokens
        assert usage.num_attempts > len(result.segments) == 3
        first, *others = fed.take()
        assert first == (1, prompt_len)
        # Of each draft all but the last token; of the segments kept before the end, that one.
        assert sum(rows * count for rows, count in others) == drafted * 3 // 4 + 2
        assert all(count == 1 for _, count in others)
        num_computed += drafted + (38 if seed == 6 else 0)
        assert (reader.num_computed, reader.num_prefills) == (num_computed, 1)


def test_cached_memory_does_not_grow_with_candidates(pair: StarsEngine) -> None:
    """Neither model's: candidates are rows of one step, which frees them."""
    sizes = []
    for num_candidates in (1, 16, 1):
        align = pair.config.align.replace(num_candidates=num_candidates)
        pair.generate(TokenIds([1, *range(3, 40)]), align=align)
        pools = (pool_of(pair.model), reader_of(pair.reward).cache.pool)
        sizes.append([pool.num_bytes for pool in pools])
    assert sizes[0] == sizes[1] == sizes[2]
    assert min(sizes[0]) > 0


def test_rejected_rows_are_freed_and_an_old_one_may_be_accepted(tokenizer: object) -> None:
    reward = classifier("llama", tokenizer)
    reader = reader_of(reward)
    prompt = [1, *range(3, 40)]
    rejected = [[*prompt, *[50 + k] * 8] for k in range(20)]
    for row in rejected:
        check(reward, [row])
    [prefix] = [each for each in reader.cache.pool.prefixes() if each.uncommitted]
    assert sum(row.has_kv for row in prefix.uncommitted) <= recent_rows._MAX_PASSES
    check(reward, [[*rejected[0], *[90] * 8]])
    check(reward, [[*rejected[-1], *[91] * 8]])


def test_nothing_is_pinned_between_calls(tokenizer: object) -> None:
    """A slow reward holds no memory: all of it can be freed, and costs time alone."""
    reward = classifier("llama", tokenizer)
    reader = reader_of(reward)
    prompt = [1, *range(3, 40)]
    check(reward, [[*prompt, *[5] * 8], [*prompt, *[6] * 8], [7, 8, 9]])
    check(reward, [[*prompt, *[5] * 8, 50], [7, 8, 9, 10]])
    assert reader.cache.pool.num_bytes > 0
    reward.free_unused()
    assert reader.cache.pool.num_bytes == 0
    computed = reader.num_computed
    check(reward, [[*prompt, *[5] * 8, 50, 51]])
    assert reader.num_computed - computed == len(prompt) + 10


def test_an_eviction_costs_only_what_was_evicted(tokenizer: object) -> None:
    """The least recently used answer goes first; what stays is not computed again."""
    reward = classifier("llama", tokenizer)
    reader = reader_of(reward)
    reward.limit_cache(2 * 64 * reward.bytes_per_token)
    answers = [[token, *range(3, 33)] for token in (40, 41, 42)]
    for ids in answers:
        check(reward, [ids])
    before = reader.num_computed
    check(reward, [[*answers[2], 5], [*answers[1], 5]])
    assert reader.num_computed - before == 2
    check(reward, [[*answers[0], 5]])
    assert reader.num_computed - before == 2 + len(answers[0]) + 1


def test_candidates_with_a_common_beginning_are_not_taken_for_accepted(tokenizer: object) -> None:
    """A longer candidate of the same segment, then one that goes on from the first."""
    reader = reader_of(classifier("llama", tokenizer))
    prompt = [1, *range(3, 40)]
    first = [*prompt, 5, *[6] * 7]
    read(reader, [first, [*prompt, *[7] * 8]])
    read(reader, [[*prompt, 5, *[8] * 9]])
    read(reader, [[*first, *[9] * 8]])
    assert reader.num_computed == len(prompt) + 2 * 8 + 10 + 8
    assert reader.num_prefills == 1


def test_a_template_suffix_does_not_hide_new_tokens(tokenizer: object) -> None:
    reader = reader_of(classifier("llama", tokenizer))
    prompt, behind = [1, *range(3, 40)], [*range(60, 90)]
    read(reader, [[*prompt, *[5] * 8, *behind], [*prompt, *[6] * 8, *behind]])
    read(reader, [[*prompt, *[6] * 8, *[7] * 8, *behind]])
    assert reader.num_computed == len(prompt) + 3 * (8 + 30)
