"""Segments that end where the model is uncertain: where, the law, and the model's entropies."""

from __future__ import annotations

from collections import defaultdict
from math import log

import pytest
import torch

from stars_engine import (
    AlignParams,
    ConfigError,
    ConstantSchedule,
    NoSchedule,
    SamplingParams,
    StarsEngine,
)
from stars_engine.backends.base import DraftRequest
from stars_engine.core.offline import stars, vanilla
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.support.rollouts import make_rollout

PIECES = ("a", "b")
CERTAIN, UNCERTAIN = (0.9, 0.1), (0.5, 0.5)
LIMIT = 0.5  # nats: 0.33 for the first, 0.69 for the second
REWARDS = {"a": 0.2, "b": 0.6, "aa": 0.9, "ab": -0.2, "ba": 0.1, "bb": 0.4, "aba": 0.8, "bbb": 0.7}


def next_probs(completion: tuple[int, ...]) -> tuple[float, ...]:
    """After "b" the model is uncertain."""
    return UNCERTAIN if completion and completion[-1] == 1 else CERTAIN


MODEL = TabularModel(PIECES, next_probs)


def by_entropy(**more: object) -> AlignParams:
    settings = {"schedule": NoSchedule(), "num_candidates": 1, **more}
    return AlignParams(
        segment_end="entropy", max_entropy=LIMIT, **{"min_segment_len": 1, **settings}
    )


def text_of(ids: tuple[int, ...]) -> str:
    return "".join(PIECES[token] for token in ids)


@pytest.mark.parametrize(("shortest", "segment_len"), [(1, 3), (2, 3), (1, 2)])
def test_a_segment_ends_before_the_first_uncertain_token(shortest: int, segment_len: int) -> None:
    for seed in range(20):
        rollout = make_rollout(
            align=by_entropy(segment_len=segment_len, min_segment_len=shortest),
            sampling=SamplingParams(max_tokens=12, temperature=1.0, top_k=None),
            seed=seed,
        )
        for _ in stars([rollout], MODEL, TableReward({})):
            pass
        result = rollout.result()
        ids = result.token_ids
        ends, start = [], 0
        while start < len(ids):  # token by token
            end = start + 1
            while end < len(ids) and end - start < segment_len:
                if end - start >= shortest and ids[end - 1] == 1:
                    break
                end += 1
            ends.append(end - start)
            start = end
        assert [len(segment.token_ids) for segment in result.segments] == ends


def law_of_segments(threshold: float, attempts: int, max_tokens: int, segment_len: int) -> dict:
    """Chain the law of one segment (keep the last draw) over segments of several lengths."""
    law: dict[str, float] = defaultdict(float)

    def segments(prefix: tuple[int, ...]) -> dict[tuple[int, ...], float]:
        found: dict[tuple[int, ...], float] = defaultdict(float)

        def grow(ids: tuple[int, ...], weight: float) -> None:
            whole = (*prefix, *ids)
            full = len(ids) == segment_len or len(whole) == max_tokens
            if ids and (full or next_probs(whole) is UNCERTAIN):
                found[ids] += weight
                return
            for token, probability in enumerate(next_probs(whole)):
                grow((*ids, token), weight * probability)

        grow((), 1.0)
        return found

    def extend(prefix: tuple[int, ...], weight: float) -> None:
        if len(prefix) == max_tokens:
            law[text_of(prefix)] += weight
            return
        drafts = segments(prefix)
        accepted = {ids: REWARDS.get(text_of((*prefix, *ids)), 0.0) >= threshold for ids in drafts}
        rejection = sum(q for ids, q in drafts.items() if not accepted[ids])
        tried = sum(rejection**k for k in range(attempts))
        for ids, q in drafts.items():
            chance = q * tried if accepted[ids] else q * rejection ** (attempts - 1)
            if chance:
                extend((*prefix, *ids), weight * chance)

    extend((), 1.0)
    return dict(law)


@pytest.mark.parametrize("num_candidates", [1, 2])
def test_the_law_is_that_of_segments_of_several_lengths(num_candidates: int) -> None:
    align = by_entropy(
        schedule=ConstantSchedule(value=0.3),
        segment_len=2,
        max_attempts=2,
        on_exhausted="last",
        num_candidates=num_candidates,
    )
    sampling = SamplingParams(max_tokens=3, temperature=1.0, top_k=None)

    def outcome(noise: TreeNoise) -> str:
        rollout = make_rollout(align=align, sampling=sampling, noise=noise)
        for _ in stars([rollout], MODEL, TableReward(REWARDS)):
            pass
        return rollout.result().text

    expected = law_of_segments(0.3, attempts=2, max_tokens=3, segment_len=2)
    assert enumerate_law(outcome) == pytest.approx(expected)


def test_plain_sampling_needs_no_entropy() -> None:
    rollout = make_rollout(align=by_entropy(), sampling=SamplingParams(max_tokens=4))
    for _ in vanilla([rollout], MODEL, TableReward({})):
        pass
    assert len(rollout.result().token_ids) == 4


def test_a_model_reports_the_entropy_before_each_token(engine: StarsEngine) -> None:
    """At temperature 1, without filters, whatever the proposal is; only where it was requested."""
    model = engine.model
    prompt = tuple(model.codec.encode_prompt("The film"))
    sampling = SamplingParams(temperature=0.5, top_k=3)
    requests = [
        DraftRequest(prompt, len(prompt), (0.3,) * 5, sampling, entropies=wanted)
        for wanted in (True, False)
    ]
    asked, other = model.draft(requests)
    assert other.entropies == ()
    assert asked.token_ids == other.token_ids
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *asked.token_ids]])
        logits = model.model(ids).logits[0, len(prompt) - 1 : -1].double()
    expected = torch.distributions.Categorical(logits=logits).entropy()
    assert asked.entropies == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.slow
def test_the_text_does_not_depend_on_parallel_drafts(engine: StarsEngine) -> None:
    align = AlignParams(
        schedule=ConstantSchedule(value=0.5),
        segment_end="entropy",
        max_entropy=3.0,
        min_segment_len=2,
        segment_len=12,
        max_attempts=6,
    )
    sampling = SamplingParams(max_tokens=32, seed=5)
    [one], [many] = (
        engine.generate("The film", sampling=sampling, align=align.replace(num_candidates=m))
        for m in (1, 4)
    )
    assert one.text == many.text
    assert one.usage.num_attempts == many.usage.num_attempts
    assert len({len(segment.token_ids) for segment in one.segments}) > 1


def test_toy_entropies_are_those_of_the_table() -> None:
    [draft] = MODEL.draft(
        [DraftRequest((0, 1), 1, (0.99, 0.0), SamplingParams(temperature=1.0), entropies=True)]
    )
    assert draft.token_ids == (1, 0)
    assert draft.entropies == pytest.approx([log(2), log(2)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"segment_end": "entropy"}, "max_entropy is required with segment_end='entropy'"),
        ({"max_entropy": 2.0}, "only allowed there.*Hint"),
        (
            {"segment_end": "entropy", "max_entropy": 2.0, "lookahead": 4},
            "lookahead=4 does not support segment_end='entropy'.*Hint",
        ),
    ],
)
def test_wrong_settings_are_explained(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlignParams(**values)
