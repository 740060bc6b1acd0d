"""The laws of blockwise best-of-m and whole-answer rejection, enumerated on tabular models."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import pytest

from stars_engine import AlignParams, NoSchedule, SamplingParams
from stars_engine.algorithm.blockwise import BlockwiseDecoding
from stars_engine.core.offline import run, stars
from stars_engine.evaluation import RejectionArm
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.support.closed_form import END, PIECES, REWARDS, next_probs
from tests.support.rollouts import make_rollout

MODEL = TabularModel(PIECES, next_probs, end_id=END)
REWARD = TableReward(REWARDS, default=0.0)
Law = dict[str, float]


def answers(prefix: tuple[int, ...], length: int) -> dict[tuple[int, ...], float]:
    """Every continuation of up to `length` tokens, with its probability."""
    if length == 0 or (prefix and prefix[-1] == END):
        return {(): 1.0}
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for token, weight in enumerate(next_probs(prefix)):
        for rest, probability in answers((*prefix, token), length - 1).items():
            found[(token, *rest)] += weight * probability
    return found


def text_of(ids: tuple[int, ...]) -> str:
    return "".join(PIECES[token] for token in ids if token != END)


def blockwise_law(m: int, segment_len: int, max_tokens: int) -> Law:
    """Chain, over segments, the law of the best of m drafts: all m-tuples of drafts."""
    law: Law = defaultdict(float)

    def extend(prefix: tuple[int, ...], weight: float) -> None:
        if len(prefix) == max_tokens or (prefix and prefix[-1] == END):
            law[text_of(prefix)] += weight
            return
        drafts = answers(prefix, min(segment_len, max_tokens - len(prefix)))
        for tuple_ in product(drafts.items(), repeat=m):
            probability = weight
            for _, own in tuple_:
                probability *= own
            rewards = [REWARDS.get(text_of((*prefix, *ids)), 0.0) for ids, _ in tuple_]
            best, _ = tuple_[rewards.index(max(rewards))]
            extend((*prefix, *best), probability)

    extend((), 1.0)
    return law


@pytest.mark.parametrize(("m", "segment_len"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("num_candidates", [1, 2])
def test_blockwise_keeps_the_best_of_m_in_every_segment(
    m: int, segment_len: int, num_candidates: int
) -> None:
    align = AlignParams(
        schedule=NoSchedule(),
        max_attempts=m,
        segment_len=segment_len,
        num_candidates=min(m, num_candidates),
    )
    sampling = SamplingParams(max_tokens=2, temperature=1.0, top_k=None)

    def outcome(noise: TreeNoise) -> str:
        rollout = make_rollout(align=align, sampling=sampling, noise=noise)
        for _ in run([rollout], MODEL, REWARD, BlockwiseDecoding()):
            pass
        result = rollout.result()
        assert all(len(segment.attempts) == m for segment in result.segments)
        assert result.usage.num_forced == 0
        assert result.usage.num_accepted == len(result.segments)
        return result.text

    assert enumerate_law(outcome) == pytest.approx(blockwise_law(m, segment_len, 2))


def test_blockwise_ends_where_no_draft_may_be_kept() -> None:
    reward = TableReward({}, default=0.0, vetoed=frozenset({"a", "b", ""}))
    align = AlignParams(schedule=NoSchedule(), max_attempts=3, segment_len=1)
    rollout = make_rollout(align=align, sampling=SamplingParams(max_tokens=2))
    for _ in run([rollout], MODEL, reward, BlockwiseDecoding()):
        pass
    result = rollout.result()
    assert (result.text, result.finish_reason) == ("", "rejected")
    assert len(result.abandoned_attempts) == 3


@pytest.mark.parametrize("threshold", [0.5, 5.0])
def test_rejection_draws_whole_answers_until_one_passes(threshold: float) -> None:
    """P(s) = q [r >= tau] (1 - R^M) / (1 - R), and the best of M where none passes."""
    attempts, max_tokens = 2, 2
    arm = RejectionArm(target=threshold, max_attempts=attempts)
    align = arm.align_for(max_tokens).replace(num_candidates=1)
    sampling = SamplingParams(max_tokens=max_tokens, temperature=1.0, top_k=None)

    def outcome(noise: TreeNoise) -> str:
        rollout = make_rollout(align=align, sampling=sampling, noise=noise)
        for _ in stars([rollout], MODEL, REWARD):
            pass
        return rollout.result().text

    whole = answers((), max_tokens)
    expected: Law = defaultdict(float)
    for drawn in product(whole.items(), repeat=attempts):
        probability = 1.0
        for _, own in drawn:
            probability *= own
        texts = [text_of(ids) for ids, _ in drawn]
        rewards = [REWARDS.get(text, 0.0) for text in texts]
        passing = [text for text, reward in zip(texts, rewards, strict=True) if reward >= threshold]
        expected[passing[0] if passing else texts[rewards.index(max(rewards))]] += probability
    law = enumerate_law(outcome)
    assert law == pytest.approx({text: value for text, value in expected.items() if value})
