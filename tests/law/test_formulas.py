"""The law's pure parts: schedules, acceptance, noise, stop strings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stars_engine import ConstantSchedule, LinearSchedule, NoSchedule, PerSegmentSchedule
from stars_engine.algorithm.acceptance import acceptance_prob, accepts
from stars_engine.algorithm.noise import CounterNoise, fresh_seed
from stars_engine.schedules import Progress
from stars_engine.tokenization.stop_strings import StopStrings
from stars_engine.tokenization.text import ends_sentence

GOLDEN_TOKENS = [0.7518752936969219, 0.8357426132455874]
GOLDEN_ACCEPTANCE = 0.5720862417999556

REAL = st.floats(-1e6, 1e6)


def at(num_tokens: int, segment_index: int = 0, prompt_reward: float = math.nan) -> Progress:
    return Progress(segment_index, num_tokens, 128, prompt_reward=prompt_reward)


# --- schedules ---


def test_linear_by_hand() -> None:
    schedule = LinearSchedule(initial=2.0, target=6.0)
    assert [schedule.threshold(at(t)) for t in (32, 64, 128, 500)] == [3, 4, 6, 6]
    short = LinearSchedule(initial=2.0, target=6.0, ramp_tokens=64)
    assert [short.threshold(at(t)) for t in (32, 64, 128)] == [4, 6, 6]
    assert schedule.final_threshold(at(1)) == 6
    assert not schedule.needs_prompt_reward


def test_linear_from_a_mixture_with_the_prompt_reward() -> None:
    schedule = LinearSchedule(target=8.0, initial_weight=0.25)
    assert schedule.needs_prompt_reward
    # r0 = 0.75 * 4 + 0.25 * 8 = 5
    assert schedule.threshold(at(64, prompt_reward=4.0)) == 6.5
    default = LinearSchedule(target=8.0)  # alpha of CARDS
    assert default.threshold(at(64, prompt_reward=4.0)) == 7.0


def test_linear_from_above_its_target_is_the_target() -> None:
    schedule = LinearSchedule(initial=9.0, target=6.0)
    assert [schedule.threshold(at(t)) for t in (1, 64, 128, 300)] == [6, 6, 6, 6]


def test_other_schedules() -> None:
    steps = PerSegmentSchedule(values=[1.0, 2.0])
    assert [steps.threshold(at(1, k)) for k in (0, 1, 2, 9)] == [1, 2, 2, 2]
    assert steps.final_threshold(at(1)) == 2
    assert ConstantSchedule(value=3).threshold(at(1)) == 3
    assert ConstantSchedule(value=3).final_threshold(at(1)) == 3
    assert NoSchedule().threshold(at(1)) == -math.inf == NoSchedule().final_threshold(at(1))


# --- acceptance ---


def test_acceptance_by_hand() -> None:
    assert acceptance_prob(1.0, 1.0, 0.0) == 1
    assert acceptance_prob(0.999, 1.0, 0.0) == 0
    assert acceptance_prob(0.0, 1.0, 0.5) == pytest.approx(math.exp(-2))
    assert acceptance_prob(0.0, 1.0, math.inf) == 1
    for beta in (0.0, 0.5, math.inf):
        assert acceptance_prob(0.0, -math.inf, beta) == 1
        assert acceptance_prob(0.0, math.inf, beta) == 0
    assert acceptance_prob(-1e308, 1e308, math.inf) == 1  # r - tau overflows


@given(REAL, REAL, REAL, st.floats(0, 1e6))
def test_acceptance_is_a_monotone_probability(a: float, b: float, tau: float, beta: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= acceptance_prob(low, tau, beta) <= acceptance_prob(high, tau, beta) <= 1


def test_extreme_probabilities_are_exact() -> None:
    assert accepts(1 - 2**-53, 1.0)
    assert not accepts(0.0, 0.0)


# --- noise ---


def noise(seed: int = 0, prompt: tuple[int, ...] = (1, 2), sample: int = 0) -> CounterNoise:
    return CounterNoise(seed=seed, prompt_ids=prompt, sample_index=sample)


def test_the_stream_never_changes() -> None:
    """Golden values: a change here changes every text ever reported with a seed."""
    tokens = noise(7).token_uniforms(position=3, attempt=1, count=2)
    assert list(tokens) == GOLDEN_TOKENS
    assert noise(7).acceptance_uniform(position=3, attempt=1) == GOLDEN_ACCEPTANCE


def test_a_uniform_does_not_depend_on_its_segment() -> None:
    whole = noise().token_uniforms(position=0, attempt=2, count=40)
    for start in (1, 7, 32):
        assert noise().token_uniforms(position=start, attempt=2, count=8) == whole[start:][:8]


def test_every_part_of_the_key_changes_the_noise() -> None:
    streams = [
        tuple(source.token_uniforms(position=position, attempt=attempt, count=4))
        for source in (noise(), noise(seed=1), noise(prompt=(1, 3)), noise(sample=1))
        for position, attempt in ((0, 0), (50, 0), (0, 1))
    ]
    assert len(set(streams)) == len(streams)
    first = noise().token_uniforms(position=0, attempt=0, count=1)[0]
    assert noise().acceptance_uniform(position=0, attempt=0) != first


def test_uniforms_are_uniform_and_streams_unrelated() -> None:
    size = 20_000
    base = np.array(noise().token_uniforms(position=0, attempt=0, count=size))
    assert base.min() >= 0
    assert base.max() < 1
    assert abs(base.mean() - 0.5) < 4 / math.sqrt(12 * size)
    counts, _ = np.histogram(base, bins=50, range=(0, 1))
    assert ((counts - size / 50) ** 2 / (size / 50)).sum() < 100  # chi-square, 49 degrees
    for other in (noise(seed=1), noise(prompt=(1, 3)), noise(sample=1)):
        uniforms = other.token_uniforms(position=0, attempt=0, count=size)
        assert abs(np.corrcoef(base, uniforms)[0, 1]) < 4 / math.sqrt(size)
    next_attempt = noise().token_uniforms(position=0, attempt=1, count=size)
    assert abs(np.corrcoef(base, next_attempt)[0, 1]) < 4 / math.sqrt(size)


def test_fresh_seeds_differ() -> None:
    assert len({fresh_seed() for _ in range(100)}) == 100


# --- stop strings ---

TEXT = st.text(alphabet="ab\n", max_size=12)


@given(TEXT, st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3))
def test_the_longest_possible_beginning_is_held_back(text: str, stops: list[str]) -> None:
    sizes = [
        size
        for size in range(len(text) + 1)
        if any(len(stop) > size and stop.startswith(text[len(text) - size :]) for stop in stops)
    ]
    assert StopStrings(stops).held_back(text) == max(sizes, default=0)


@given(TEXT, st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3))
def test_find_stop_is_the_earliest(text: str, stops: list[str]) -> None:
    positions = [i for i in range(len(text)) if any(text.startswith(stop, i) for stop in stops)]
    assert StopStrings(stops).find(text) == (positions[0] if positions else None)


ENDS = [
    "No.",
    "No!",
    "No?!",
    "No...",
    "No\u2026",
    'said "No."',
    "(No!)",
    "\u201cNo.\u201d)",
    "No\n",
]
ENDS += ["\u3044\u3044\u3048\u3002", "\u300c\u3044\u3044\u3048\uff01\u300d", "Mr.", "3."]


@pytest.mark.parametrize("text", ENDS)
def test_ends_of_sentences(text: str) -> None:
    assert ends_sentence(text)


@pytest.mark.parametrize("text", ["", "No", "No. ", "No.\n ", "No,", '"', "No;", "No.x", ".a)"])
def test_text_without_sentence_ends(text: str) -> None:
    assert not ends_sentence(text)
