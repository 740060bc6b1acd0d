"""The law with alternatives: the proposal is the mixture, enumerated through the real loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import pytest
from scipy.stats import chisquare

from stars_engine import Alternative, NoSchedule
from stars_engine.algorithm.alternatives import AlternativeIds
from stars_engine.algorithm.candidate import Draft
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.algorithm.proposals import next_proposals
from stars_engine.algorithm.rollout import Rollout
from stars_engine.backends.base import DraftRequest
from stars_engine.core.offline import best_of_n, stars, vanilla
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.support.closed_form import (
    END,
    PIECES,
    SENTENCES,
    Case,
    closed_form,
    drafts,
    next_probs,
)
from tests.support.rollouts import make_rollout

PLAIN = (1,)


def prompt_of(number: int) -> tuple[int, ...] | None:
    """The token ids of the prompt with a number in `Case.alternatives`."""
    return (5, 5, number) if number else None


class PromptedTables(TabularModel):
    """A tabular model whose table depends on the prompt."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        return [self._model_of(request)._draft(request) for request in requests]

    def _model_of(self, request: DraftRequest) -> TabularModel:
        ids = tuple(request.token_ids[: request.num_prompt_tokens])
        number = 0 if ids == PLAIN else ids[-1]
        assert ids == (prompt_of(number) or PLAIN)
        if number not in self._models:
            self._models[number] = TabularModel(
                self.pieces, lambda ids: next_probs(ids, number), end_id=END
            )
        return self._models[number]

    @cached_property
    def _models(self) -> dict[int, TabularModel]:
        return {}


def rollout_of(case: Case, noise: object) -> Rollout:
    align, sampling = case.align(), case.sampling()
    alternatives = [
        AlternativeIds(index, share, prompt_of(prompt), opening)
        for index, (share, prompt, opening) in enumerate(case.alternatives)
    ]
    return make_rollout(
        PLAIN, align=align, sampling=sampling, noise=noise, alternatives=alternatives
    )


def models_of(case: Case) -> tuple[PromptedTables, TableReward]:
    model = PromptedTables(case.pieces, next_probs, end_id=END)
    return model, TableReward(dict(case.rewards), default=0.0, vetoed=case.vetoed)


def assert_same_law(case: Case, expected: Case | None = None) -> None:
    model, reward = models_of(case)
    start = rollout_of(case, None)

    def run(noise: TreeNoise) -> tuple[str, str]:
        rollout = start.fork(noise=noise)
        for _ in stars([rollout], model, reward):
            pass
        result = rollout.result()
        return result.text, result.finish_reason

    got, form = enumerate_law(run), closed_form(expected or case)
    assert sum(got.values()) == pytest.approx(1.0, abs=1e-12)
    for outcome in got.keys() | form.keys():
        assert got.get(outcome, 0.0) == pytest.approx(form.get(outcome, 0.0), abs=1e-12)


ONE = ((0.25, 1, ()),)
TWO = ((0.25, 1, ()), (0.125, 2, ()))
MIXED = ((0.375, 1, (1, 0)), (0.25, 0, (0, 0, 1)))


@pytest.mark.parametrize("on_exhausted", ["best", "last", "stop"])
@pytest.mark.parametrize("num_candidates", [1, 2])
@pytest.mark.parametrize("alternatives", [ONE, TWO], ids=["one", "two"])
def test_the_mixture_is_the_proposal(
    alternatives: tuple, num_candidates: int, on_exhausted: str
) -> None:
    case = Case(
        (0.4,), 0.5, 2, on_exhausted, num_candidates, max_tokens=1, alternatives=alternatives
    )
    assert_same_law(case)


@pytest.mark.slow
@pytest.mark.parametrize("num_candidates", [1, 2])
def test_two_segments(num_candidates: int) -> None:
    case = Case((0.4, 0.6), 0.5, 2, "best", num_candidates, max_tokens=2, alternatives=ONE)
    assert_same_law(case)


def test_the_plain_law_is_another() -> None:
    case = Case((0.4,), 0.5, 2, "best", 1, max_tokens=1, alternatives=ONE)
    with pytest.raises(AssertionError):
        assert_same_law(case, replace(case, alternatives=()))
    with pytest.raises(AssertionError):
        assert_same_law(case, replace(case, alternatives=((0.5, 1, ()),)))


@pytest.mark.parametrize("segment_len", [1, 2, 3])
@pytest.mark.parametrize("alternatives", [((0.25, 0, (0, 1)),), MIXED], ids=["one", "two"])
def test_openings_are_point_masses_followed_by_the_model(
    alternatives: tuple, segment_len: int
) -> None:
    """Openings shorter and longer than a segment; an opening also runs into the stop string."""
    case = Case(
        (0.3, 0.5, 0.8),
        0.4,
        1,
        "stop",
        1,
        max_tokens=3,
        segment_len=segment_len,
        alternatives=alternatives,
    )
    assert_same_law(case)


@pytest.mark.slow
@pytest.mark.parametrize("num_candidates", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"slope": -1.0, "max_tokens": 2, "alternatives": ONE},
        {"lookahead": 1, "max_tokens": 2, "alternatives": ((0.25, 0, (0, 1)), (0.5, 0, (1,)))},
        {"segment_len": 2, "min_segment_len": 1, "max_tokens": 2, **SENTENCES},
        {"vetoed": frozenset({"a", "bb"}), "max_tokens": 1},
    ],
    ids=["prefix", "lookahead", "sentence", "veto"],
)
def test_alternatives_with_other_settings(options: dict, num_candidates: int) -> None:
    given = {"alternatives": MIXED, **options}
    case = Case((0.3, 0.5, 0.8), 0.4, 2, "best", num_candidates, **given)
    assert_same_law(case)


def test_a_share_of_one_leaves_nothing_to_the_plain_prompt() -> None:
    case = Case((0.4, 0.6), 0.5, 1, "stop", 1, max_tokens=2, alternatives=((1.0, 1, ()),))
    assert_same_law(case)


# --- statistics ---


@pytest.mark.slow
def test_counted_noise_draws_from_the_law() -> None:
    case = Case((0.4, 0.6), 0.5, 3, "best", 2, max_tokens=2, alternatives=MIXED)
    count = 1000
    rollouts = [
        rollout_of(case, CounterNoise(seed=7, prompt_ids=PLAIN, sample_index=index))
        for index in range(count)
    ]
    for _ in stars(rollouts, *models_of(case)):
        pass
    found = Counter((rollout.result().text, rollout.result().finish_reason) for rollout in rollouts)
    law = closed_form(case)
    assert found.keys() <= law.keys()
    outcomes = [outcome for outcome in law if law[outcome] * count >= 5]
    rest = count - sum(found[outcome] for outcome in outcomes)
    expected = [law[outcome] * count for outcome in outcomes]
    observed = [found[outcome] for outcome in outcomes]
    if count - sum(expected) > 1:
        expected, observed = [*expected, count - sum(expected)], [*observed, rest]
    assert chisquare(observed, expected, sum_check=False).pvalue > 1e-3


def test_shares_and_uniforms_are_independent() -> None:
    noise = CounterNoise(seed=1, prompt_ids=PLAIN, sample_index=0)
    shares = [0.5, 0.3, 0.2]
    at = [(position, attempt) for position in range(50) for attempt in range(100)]
    picks = [
        noise.proposal_index(position=position, attempt=attempt, shares=shares)
        for position, attempt in at
    ]
    counts = Counter(picks)
    assert chisquare([counts[i] for i in range(3)], [len(at) * s for s in shares]).pvalue > 1e-3
    highs = [
        noise.token_uniforms(position=position, attempt=attempt, count=1)[0] > 0.5
        for position, attempt in at
    ]
    tests = [
        noise.acceptance_uniform(position=position, attempt=attempt) > 0.5
        for position, attempt in at
    ]
    for others in (highs, tests):
        both = Counter(zip(picks, others, strict=True))
        cells = [both[pick, high] for pick in range(3) for high in (False, True)]
        expected = [len(at) * share / 2 for share in shares for _ in range(2)]
        assert chisquare(cells, expected).pvalue > 1e-3


# --- which proposal ---


def test_baselines_draw_from_the_same_mixture() -> None:
    """Accepting everything is plain sampling, whose sample 0 is that of Best-of-N."""
    case = Case((0.0,), 0.0, 1, "best", 1, max_tokens=2, alternatives=MIXED)

    def rollouts() -> list[Rollout]:
        found = [
            rollout_of(case, CounterNoise(seed=3, prompt_ids=PLAIN, sample_index=index))
            for index in range(60)
        ]
        for rollout in found:
            rollout.align = rollout.align.replace(schedule=NoSchedule())
        return found

    runs = {}
    for name, run in {
        "stars": lambda given: stars(given, *models_of(case)),
        "vanilla": lambda given: vanilla(given, *models_of(case)),
        "best": lambda given: best_of_n(given, *models_of(case), n=1),
    }.items():
        given = rollouts()
        for _ in run(given):
            pass
        runs[name] = [tuple(rollout.token_ids) for rollout in given]
    assert runs["stars"] == runs["vanilla"] == runs["best"]
    q = drafts(case, ())
    firsts = Counter(ids[:1] for ids in runs["vanilla"])
    assert firsts[(1,)] > firsts[(END,)]  # "b" opens the first alternative
    assert set(firsts) == set(q)


def test_every_draw_says_which_alternative_proposed_it() -> None:
    case = Case((0.9, 0.9), 0.5, 4, "best", 4, max_tokens=2, alternatives=TWO)
    found = set()
    for index in range(20):
        rollout = rollout_of(case, CounterNoise(seed=3, prompt_ids=PLAIN, sample_index=index))
        fresh = rollout_of(case, CounterNoise(seed=3, prompt_ids=PLAIN, sample_index=index))
        for _ in stars([rollout], *models_of(case)):
            pass
        segment = rollout.result().segments[0]
        picks = [p.alternative for p in next_proposals(fresh, range(len(segment.attempts)))]
        assert [attempt.alternative for attempt in segment.attempts] == picks
        kept = next(i for i, each in enumerate(segment.attempts) if each.verdict != "rejected")
        assert segment.alternative == picks[kept]
        found |= set(picks)
    assert found == {None, 0, 1}


def test_an_opening_that_is_over_counts_as_plain() -> None:
    rollout = rollout_of(
        Case((0.0,), 0.0, 1, "best", 1, max_tokens=4, alternatives=((1.0, 0, (0, 1)),)),
        CounterNoise(seed=0, prompt_ids=PLAIN, sample_index=0),
    )
    for answer, forced in (([], (0,)), ([0], (1,)), ([1], ()), ([0, 1], ())):
        rollout.token_ids = list(answer)
        [proposal] = next_proposals(rollout, [0])
        assert (proposal.forced, proposal.alternative) == (forced, 0 if forced else None)


def test_all_attempts_are_made_at_temperature_0() -> None:
    """Draws of different proposals differ, though each proposal has only one."""
    case = Case((9.0,), 0.0, 8, "best", 1, max_tokens=1, alternatives=((0.5, 0, (1,)),))
    rollout = rollout_of(case, CounterNoise(seed=0, prompt_ids=PLAIN, sample_index=0))
    rollout.sampling = rollout.sampling.replace(temperature=0)
    opening = Alternative(opening="b", share=0.5)
    rollout.align = rollout.align.replace(alternatives=[opening])
    for _ in stars([rollout], *models_of(case)):
        pass
    [segment] = rollout.result().segments
    assert len(segment.attempts) == 8
    assert {attempt.reward for attempt in segment.attempts} == {0.7, -0.4}
    assert rollout.result().text == "a"  # the better one


def test_a_model_that_ignores_forced_tokens_is_told() -> None:
    class Deaf(PromptedTables):
        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            return super().draft([replace(request, forced=()) for request in requests])

    case = Case((0.0,), 0.0, 1, "best", 1, max_tokens=3, alternatives=((1.0, 0, (1, 0)),))
    rollout = rollout_of(case, CounterNoise(seed=1, prompt_ids=PLAIN, sample_index=0))
    for _ in stars([rollout], Deaf(PIECES, next_probs, end_id=END), models_of(case)[1]):
        pass
    assert "DraftRequest.forced" in str(rollout.error)
