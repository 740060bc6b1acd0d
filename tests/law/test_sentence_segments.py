"""Segments that end with a sentence: where, what is counted, and their law."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
from scipy.stats import chisquare

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    LinearSchedule,
    NoSchedule,
    PerSegmentSchedule,
    SamplingParams,
    StarsEngine,
)
from stars_engine.algorithm.rollout import Rollout
from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.core.offline import stars, vanilla
from stars_engine.testing import TableReward, TabularModel
from stars_engine.types import StarsResult
from tests.support.closed_form import SENTENCES, Case, closed_form, next_probs
from tests.support.recording import RecordingReward
from tests.support.rollouts import make_rollout

PIECES = ["a", ".", "b", "\n", '."', ""]
END = 5
PLAIN = {"temperature": 1.0, "top_k": None}


class FixedOutputModel(TabularModel):
    """Drafts a given text, however long the drafts are."""

    def __init__(self, *ids: int) -> None:
        super().__init__(PIECES, lambda _: [1.0] * len(PIECES), end_id=END)
        self._ids = ids

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        drafts = []
        for request in requests:
            done = request.num_completion_tokens
            ids = self._ids[done : done + len(request.uniforms)]
            drafts.append(Draft(ids[: ids.index(END) + 1] if END in ids else ids))
        return drafts


def sentences(segment_len: int, min_segment_len: int | None = 1, **more: object) -> AlignParams:
    more = {"schedule": NoSchedule(), "num_candidates": 1, **more}
    return AlignParams(
        segment_len=segment_len,
        segment_end="sentence",
        min_segment_len=min_segment_len,
        **more,
    )


def run(
    model: TabularModel, align: AlignParams, reward: object = None, **sampling: object
) -> StarsResult:
    rollout = make_rollout(align=align, sampling=SamplingParams(**PLAIN, **sampling))
    *_, last = stars([rollout], model, reward or RecordingReward())
    assert last.result is not None
    return last.result


def lengths(result: StarsResult) -> list[int]:
    return [len(segment.token_ids) for segment in result.segments]


# --- where a segment ends ---


@pytest.mark.parametrize(
    ("min_segment_len", "expected"),
    [
        (1, [2, 1, 2, 5]),  # a. | . | a." | aabb and a newline
        (2, [2, 3, 5]),  # a. | .a." | ...
        (3, [3, 5, 2]),  # a.. | a."aab, where the border comes too early | ...
        (5, [5, 5]),
        (None, [2, 1, 2, 5]),  # a quarter of 5
    ],
)
def test_a_segment_ends_at_the_first_sentence_end_after_the_shortest_length(
    min_segment_len: int | None, expected: list[int]
) -> None:
    model = FixedOutputModel(0, 1, 1, 0, 4, 0, 0, 2, 2, 3)
    result = run(model, sentences(5, min_segment_len), max_tokens=10)
    assert result.text == 'a..a."aabb\n'
    assert lengths(result) == expected


def test_without_a_sentence_end_it_ends_at_segment_len() -> None:
    assert lengths(run(FixedOutputModel(*[0] * 7), sentences(3), max_tokens=7)) == [3, 3, 1]


def test_a_stop_string_or_end_of_text_may_come_first() -> None:
    reward = RecordingReward()
    model = FixedOutputModel(0, 3, 3, 2, 0)
    result = run(model, sentences(5, 3), reward, max_tokens=5, stop="\n\n")
    assert (result.text, result.finish_reason, lengths(result)) == ("a", "stop", [3])
    assert reward.inputs[0].finished
    # The border is at the first newline: the stop string is complete in the second segment.
    result = run(model, sentences(5, 1), max_tokens=5, stop="\n\n")
    assert (result.text, result.finish_reason, lengths(result)) == ("a", "stop", [2, 1])
    result = run(FixedOutputModel(0, END), sentences(5, 1), max_tokens=5)
    assert (result.text, result.finish_reason, lengths(result)) == ("a", "stop", [2])
    result = run(FixedOutputModel(0, 1, END), sentences(5, 1), max_tokens=5)
    assert (result.text, result.finish_reason, lengths(result)) == ("a.", "stop", [2, 1])


def test_a_character_is_never_split(engine: StarsEngine) -> None:
    """A text that ends a sentence but for half a character ends none."""
    model = engine.model
    ids = model.codec.encode_prompt(" Fine.\U0001f642 and.")[1:]
    point = model.codec.encode_prompt(" Fine.")[1:]
    emoji = model.codec.encode_prompt(" Fine.\U0001f642")[1:]
    assert ids[: len(point)] == point
    assert len(emoji) > len(point) + 1

    class Fixed:
        def __getattr__(self, name: str) -> object:
            return getattr(model, name)

        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            return [Draft(tuple(ids[request.num_completion_tokens :])) for request in requests]

    align = sentences(len(ids), len(point) + 1)  # the shortest segment ends within the emoji
    own = StarsEngine(engine.config.replace(align=align), model=Fixed(), reward=RecordingReward())
    [result] = own.generate("It was", sampling=SamplingParams(max_tokens=len(ids), seed=0))
    assert result.text == " Fine.\U0001f642 and."
    assert lengths(result) == [len(ids)]


# --- what it means for counts, thresholds and bounds ---


def test_tokens_after_a_sentence_end_are_surplus() -> None:
    model = FixedOutputModel(0, 1, 0, 1, 0, 1)
    align = sentences(4, schedule=ConstantSchedule(value=1.0), max_attempts=3)
    usage = run(model, align, max_tokens=6).usage  # each of 3 segments of 2 is drawn 3 times
    assert (usage.num_kept_tokens, usage.num_attempts, usage.num_forced) == (6, 9, 3)
    assert usage.num_drafted_tokens == 18
    assert usage.num_surplus_tokens == 3 * (2 + 2 + 0)
    usage = run(model, align.replace(num_candidates=2), max_tokens=6).usage
    assert (usage.num_drafted_tokens, usage.num_surplus_tokens) == (18, 12)
    everything = sentences(4, schedule=NoSchedule(), num_candidates=2)
    usage = run(model, everything, max_tokens=6).usage
    assert (usage.num_drafted_tokens, usage.num_surplus_tokens) == (6, 2 + 2 + 0 + 4 + 4 + 2)


def test_schedules_count_tokens_and_segments() -> None:
    model = FixedOutputModel(0, 1, 1, 0, 0, 0, 0, 0)
    ramp = LinearSchedule(initial=0.0, target=8.0, ramp_tokens=8)
    result = run(model, sentences(4, schedule=ramp, max_attempts=1), max_tokens=8)
    assert [s.threshold for s in result.segments] == [2.0, 3.0, 7.0, 8.0]
    steps = PerSegmentSchedule(values=[5, 6, 7])
    result = run(model, sentences(4, schedule=steps, max_attempts=1), max_tokens=8)
    assert [s.threshold for s in result.segments] == [5, 6, 7, 7]


@pytest.mark.parametrize("m", [1, 2, 8])
@pytest.mark.parametrize(("budget", "kept", "drafted"), [(3, 0, 0), (5, 2, 2), (6, 4, 4)])
def test_the_budget_expects_a_whole_segment(m: int, budget: int, kept: int, drafted: int) -> None:
    align = sentences(4, max_drafted_tokens=budget, num_candidates=m)
    result = run(FixedOutputModel(0, 1, 0, 1, 0, 1, 0, 1), align, max_tokens=8)
    assert result.finish_reason == "budget"
    usage = result.usage
    assert (usage.num_kept_tokens, usage.num_drafted_tokens) == (kept, drafted)


def test_plain_sampling_ignores_sentence_ends() -> None:
    rollout = make_rollout(
        align=sentences(4, 2, max_drafted_tokens=8), sampling=SamplingParams(max_tokens=8, **PLAIN)
    )
    *_, last = vanilla([rollout], FixedOutputModel(0, 1, 0, 1, 0, 1, 0, 1), RecordingReward())
    assert lengths(last.result) == [4, 4]
    assert last.result.usage.num_surplus_tokens == 0


# --- the law under counted noise ---

# The first segment is rejected for its second token, and often kept with one token: then the next
# segment draws position 1 again. All later segments are accepted.
CASE = Case(
    thresholds=(0.5, -math.inf),
    beta=0.0,
    max_attempts=3,
    on_exhausted="last",
    num_candidates=2,
    max_tokens=4,
    segment_len=3,
    min_segment_len=1,
    **{**SENTENCES, "rewards": ((".", 1.0), ("a.", 1.0), ("a", 1.0))},
)
NUM_SAMPLES = 3000


def sampled(case: Case) -> Counter[tuple[str, str]]:
    model = TabularModel(case.pieces, next_probs, end_id=2)
    align = sentences(
        case.segment_len,
        case.min_segment_len,
        schedule=PerSegmentSchedule(values=case.thresholds),
        beta=case.beta,
        max_attempts=case.max_attempts,
        on_exhausted=case.on_exhausted,
        num_candidates=case.num_candidates,
    )
    sampling = SamplingParams(max_tokens=case.max_tokens, stop=case.stop, **PLAIN)
    rollouts = [
        make_rollout(align=align, sampling=sampling, seed=seed) for seed in range(NUM_SAMPLES)
    ]
    for _ in stars(rollouts, model, TableReward(dict(case.rewards))):
        pass
    return Counter((r.result().text, r.result().finish_reason) for r in rollouts)


def p_value() -> float:
    """Of the sampled texts under the exact law."""
    seen, law = sampled(CASE), closed_form(CASE)
    assert seen.keys() <= law.keys()
    common = [key for key in law if law[key] * NUM_SAMPLES >= 5]
    expected = [law[key] * NUM_SAMPLES for key in common]
    observed = [seen[key] for key in common]
    rest = NUM_SAMPLES - sum(expected)
    if rest > 5:
        expected, observed = [*expected, rest], [*observed, NUM_SAMPLES - sum(observed)]
    else:
        expected[0] += rest
        observed[0] += NUM_SAMPLES - sum(observed)
    return float(chisquare(observed, expected).pvalue)


@pytest.mark.slow
def test_a_segment_does_not_depend_on_the_rejected_draws_of_the_one_before() -> None:
    """Those may have read uniforms of positions that this segment draws again."""
    assert p_value() > 1e-3


@pytest.mark.slow
def test_the_check_detects_streams_that_restart_with_each_segment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Rollout, "_stream", lambda self, attempt: attempt)
    assert p_value() < 1e-6
