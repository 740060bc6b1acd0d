"""Text is a function of (prompt, seed, sample index, config) and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stars_engine import AlignParams, NoSchedule, SamplingParams, StarsEngine
from stars_engine.backends.transformers import TransformersBackend
from tests.support.accounts import account

PROMPTS = [
    "This movie",
    "I",
    "The acting in this film was",
    "",
    "My wife and I went to see it on a rainy day and",
    "Once upon a time there was a film that nobody wanted to see because",
    "Bad",
    "It was the best of times, it was the worst of times, and the film",
]
SEEDED = SamplingParams(seed=5, max_tokens=40)


def with_m(engine: StarsEngine, m: int) -> AlignParams:
    return engine.config.align.replace(num_candidates=m)


@pytest.mark.slow
@pytest.mark.parametrize("m", [2, 4, 8])
def test_same_text_for_every_num_candidates(imdb_engine: StarsEngine, m: int) -> None:
    one = imdb_engine.generate(PROMPTS, sampling=SEEDED, align=with_m(imdb_engine, 1))
    several = imdb_engine.generate(PROMPTS, sampling=SEEDED, align=with_m(imdb_engine, m))
    assert [account(r) for r in several] == [account(r) for r in one]
    assert any(r.usage.num_attempts > len(r.segments) for r in one)  # something was rejected
    assert all(r.usage.num_surplus_tokens == 0 for r in one)


@pytest.mark.slow
def test_same_text_alone_and_in_a_ragged_batch(imdb_engine: StarsEngine) -> None:
    together = imdb_engine.generate(PROMPTS, sampling=SEEDED)
    alone = [imdb_engine.generate(prompt, sampling=SEEDED)[0] for prompt in PROMPTS]
    assert [account(r) for r in together] == [account(r) for r in alone]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tinystories", "stories260k"])
def test_same_text_on_the_other_models(name: str, request: pytest.FixtureRequest) -> None:
    backend: TransformersBackend = request.getfixturevalue(name)

    class LengthReward:
        def score(self, inputs: list) -> list[float]:
            return [-abs(len(item.text) - 60) / 20 for item in inputs]

    align = AlignParams(schedule={"kind": "constant", "value": -1.0}, beta=0.5, segment_len=8)
    config = StarsEngine().config.replace(align=align)
    engine = StarsEngine(config, model=backend, reward=LengthReward())
    prompts = ["Once upon a time", "Lily", "The big dog said", "One day a"]
    runs = [
        engine.generate(prompts, sampling=SEEDED, align=align.replace(num_candidates=m))
        for m in (1, 4, 8)
    ]
    runs.append([engine.generate(prompt, sampling=SEEDED)[0] for prompt in prompts])
    for run in runs[1:]:
        assert [account(r) for r in run] == [account(r) for r in runs[0]]


@pytest.mark.slow
def test_samples_of_one_prompt_differ(engine: StarsEngine) -> None:
    results = engine.generate("This movie", sampling=SamplingParams(seed=1, n=4))
    assert len({result.text for result in results}) == 4
    assert [result.sample_index for result in results] == [0, 1, 2, 3]
    again = engine.generate("This movie", sampling=SamplingParams(seed=1, n=2))
    assert [r.text for r in again] == [r.text for r in results[:2]]


def test_seed_none_draws_a_fresh_one_and_reports_it(engine: StarsEngine) -> None:
    first, second = engine.generate(["This movie"] * 2, sampling=SamplingParams(max_tokens=16))
    assert first.seed != second.seed
    [again] = engine.generate("This movie", sampling=SamplingParams(max_tokens=16, seed=first.seed))
    assert again.text == first.text


def test_reject_rewind_redraft_is_a_fresh_draft(engine: StarsEngine) -> None:
    """After rejected candidates the cache is what a fresh read of the same tokens gives."""
    [result] = engine.generate("The plot", sampling=SamplingParams(seed=4, max_tokens=48))
    assert result.usage.num_attempts > len(result.segments)
    kept = list(result.token_ids)
    from stars_engine.algorithm.noise import CounterNoise

    ids = engine.model.codec.encode_prompt("The plot")
    noise = CounterNoise(seed=4, prompt_ids=ids, sample_index=0)
    position = 0
    for segment in result.segments:
        attempt = next(
            i for i, a in enumerate(segment.attempts) if a.verdict in ("accepted", "forced")
        )
        count = len(segment.token_ids)
        uniforms = noise.token_uniforms(position=position, attempt=attempt, count=count)
        from stars_engine.backends.base import DraftRequest

        prefix = [*ids, *kept[:position]]
        [fresh] = engine.model.draft(
            [DraftRequest(prefix, len(ids), uniforms, SamplingParams(seed=4))]
        )
        assert fresh.token_ids == segment.token_ids
        position += count


# --- segments that end with a sentence, and candidates scored with a lookahead ---

OPTIONS = [
    {"segment_end": "sentence", "segment_len": 16, "min_segment_len": 3},
    {"segment_len": 8, "lookahead": 6},
]
RAMP = {"kind": "linear", "initial": -0.1, "target": 2.6}
HARD = {"schedule": RAMP, "beta": 0.2, "max_attempts": 6}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=["sentence", "lookahead"])
def test_same_text_with_options(engine: StarsEngine, options: dict) -> None:
    prompts = PROMPTS[:5]
    align = AlignParams(**options, **HARD, num_candidates=1)
    one = engine.generate(prompts, sampling=SEEDED, align=align)
    assert any(r.usage.num_attempts > len(r.segments) for r in one)
    assert any(r.usage.num_accepted > 1 for r in one)
    lengths = {len(segment.token_ids) for r in one for segment in r.segments[:-1]}
    assert lengths == {8} if "lookahead" in options else len(lengths) > 4
    for m in (2, 4, 8):
        several = engine.generate(prompts, sampling=SEEDED, align=align.replace(num_candidates=m))
        assert [account(r) for r in several] == [account(r) for r in one]
    alone = [engine.generate(prompt, sampling=SEEDED, align=align)[0] for prompt in prompts]
    assert [account(r) for r in alone] == [account(r) for r in one]
    # Beside rollouts with other settings, some of which draft as many tokens.
    others = [
        AlignParams(**HARD, segment_len=14),
        AlignParams(**HARD, segment_len=16),
        AlignParams(**HARD, segment_len=12, lookahead=2),
    ]
    mixed = engine.generate([*prompts, *prompts[:3]], sampling=SEEDED, align=[align] * 5 + others)
    assert [account(r) for r in mixed[:5]] == [account(r) for r in one]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=["sentence", "lookahead"])
@pytest.mark.parametrize("m", [1, 4])
def test_accepting_everything_with_options_equals_vanilla(
    engine: StarsEngine, options: dict, m: int
) -> None:
    align = AlignParams(schedule=NoSchedule(), **options, num_candidates=m)
    accepted = engine.generate(PROMPTS, sampling=SEEDED, align=align)
    plain = engine.vanilla(PROMPTS, sampling=SEEDED)
    assert [r.token_ids for r in accepted] == [r.token_ids for r in plain]
    assert [r.reward for r in accepted] == pytest.approx([r.reward for r in plain], abs=1e-4)


# --- baselines ---


@pytest.mark.slow
def test_accepting_everything_equals_vanilla(engine: StarsEngine) -> None:
    sampling = SamplingParams(seed=2, max_tokens=50)
    align = AlignParams(schedule=NoSchedule(), segment_len=7)
    accepted = engine.generate(PROMPTS, sampling=sampling, align=align)
    plain = engine.vanilla(PROMPTS, sampling=sampling)
    assert [r.token_ids for r in accepted] == [r.token_ids for r in plain]
    assert [r.reward for r in accepted] == pytest.approx([r.reward for r in plain], abs=1e-4)


def test_best_of_n_returns_the_best_sample(engine: StarsEngine) -> None:
    sampling = SamplingParams(seed=2, max_tokens=24)
    [one] = engine.best_of_n("The story", 1, sampling=sampling)
    [plain] = engine.vanilla("The story", sampling=sampling)
    assert one.token_ids == plain.token_ids
    [best] = engine.best_of_n("The story", 6, sampling=sampling)
    rewards = [attempt.reward for attempt in best.segments[0].attempts]
    assert len(rewards) == 6
    assert best.reward == max(rewards)
    assert rewards[0] == pytest.approx(plain.reward, abs=1e-4)
    assert best.usage.num_drafted_tokens == sum(a.num_tokens for a in best.segments[0].attempts)


@pytest.mark.parametrize("name", ["tinystories", "stories260k"])
def test_greedy_vanilla_equals_generate(name: str, request: pytest.FixtureRequest) -> None:
    backend: TransformersBackend = request.getfixturevalue(name)
    config = StarsEngine().config.replace(align=AlignParams(schedule=NoSchedule(), segment_len=9))

    class Nothing:
        def score(self, inputs: list) -> list[float]:
            return [0.0] * len(inputs)

    engine = StarsEngine(config, model=backend, reward=Nothing())
    for prompt in ["Once upon a time", "Tom had a red ball"]:
        ids = backend.codec.encode_prompt(prompt)
        sampling = SamplingParams(temperature=0, max_tokens=60)
        [ours] = engine.vanilla(prompt, sampling=sampling)
        theirs = backend.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=60,
            pad_token_id=0,
            temperature=None,
            top_p=None,
        )[0, len(ids) :].tolist()
        assert list(ours.token_ids) == theirs


def test_two_prompts_under_one_seed_are_uncorrelated() -> None:
    from stars_engine.algorithm.noise import CounterNoise

    def uniforms(prompt: list[int]) -> list[float]:
        noise = CounterNoise(seed=0, prompt_ids=prompt, sample_index=0)
        return list(noise.token_uniforms(position=0, attempt=0, count=20_000))

    correlation = np.corrcoef(uniforms([1, 2, 3]), uniforms([1, 2, 4]))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(20_000)
