"""The embedded pair's evaluation, on a few prompts and a few tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import yaml

from benchmarks.answers import AnswerRecord, Arms, perplexity
from benchmarks.embedded_pair import (
    CANDIDATES,
    EMBEDDED,
    QUARTER,
    RAMP,
    SIXTH,
    Arm,
    as_shipped,
    best,
    markdown,
)
from benchmarks.half import Half, guards_hold
from stars_engine import (
    AlignParams,
    CalibratedSchedule,
    ConstantSchedule,
    NoSchedule,
    SamplingParams,
    StarsEngine,
    StarsResult,
)
from training.linear import LinearClassifier

PROMPTS = ["This movie", "I saw this", "The plot of", "What a film"]
SHORT = SamplingParams(max_tokens=12, seed=3)


@pytest.fixture(scope="module")
def arms(engine: StarsEngine, tmp_path_factory: pytest.TempPathFactory) -> Arms:
    return Arms(engine, tmp_path_factory.mktemp("kept"), (EMBEDDED / "lm", EMBEDDED / "reward"))


@pytest.fixture(scope="module")
def judge() -> LinearClassifier:
    texts = ["a good great film", "the best of all", "a bad film", "the worst of all"] * 3
    return LinearClassifier.fit(texts, [1, 1, 0, 0] * 3, strength=1.0)


@pytest.fixture(scope="module")
def half(arms: Arms, judge: LinearClassifier) -> Half:
    return Half(
        PROMPTS,
        arms,
        judge,
        seeds=(3, 4),
        samples=5,
        language_model=EMBEDDED / "lm",
        max_tokens=12,
    )


@pytest.fixture
def silent(engine: StarsEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[StarsEngine]:
    """The engine, which must not be asked."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("generated again what is kept")

    for name in ("vanilla", "generate", "decode"):
        monkeypatch.setattr(engine, name, fail)
    return engine


def assert_same(kept: Sequence[AnswerRecord], results: Sequence[StarsResult]) -> None:
    """Equal, rewards up to rounding: what was read before is not read again."""
    fresh = [AnswerRecord.of(result) for result in results]
    assert [replace(answer, reward=0.0) for answer in kept] == [
        replace(answer, reward=0.0) for answer in fresh
    ]
    rewards = [answer.reward for answer in fresh]
    assert [answer.reward for answer in kept] == pytest.approx(rewards, abs=1e-5)


def test_answers_are_stored_unchanged(arms: Arms, engine: StarsEngine) -> None:
    kept = arms.vanilla(PROMPTS, SHORT.replace(n=2))
    assert_same(kept, engine.vanilla(PROMPTS, sampling=SHORT.replace(n=2)))
    align = AlignParams(schedule=ConstantSchedule(value=0.5), segment_len=4)
    kept = arms.stars(PROMPTS, SHORT, align)
    assert_same(kept, engine.generate(PROMPTS, sampling=SHORT, align=align))
    assert sum(answer.num_drafted for answer in kept) > sum(len(answer.ids) for answer in kept)


def test_stored_answers_are_not_generated_again(arms: Arms, silent: StarsEngine) -> None:
    align = AlignParams(schedule=ConstantSchedule(value=0.5), segment_len=4)
    again = arms.stars(PROMPTS, SHORT, align)
    assert len(again) == len(PROMPTS)
    for changed in (
        lambda: arms.stars(PROMPTS, SHORT.replace(seed=4), align),
        lambda: arms.stars(PROMPTS[:3], SHORT, align),
        lambda: arms.stars(PROMPTS, SHORT, align.replace(segment_len=3)),
    ):
        with pytest.raises(AssertionError, match="generated again"):
            changed()


def test_a_failed_run_stores_nothing(arms: Arms, silent: StarsEngine) -> None:
    before = sorted(path.name for path in arms._directory.iterdir())
    with pytest.raises(AssertionError, match="generated again"):
        arms.vanilla(PROMPTS, SHORT.replace(seed=99))
    assert sorted(path.name for path in arms._directory.iterdir()) == before


def test_perplexity_is_of_the_answer_tokens_only(arms: Arms, engine: StarsEngine) -> None:
    answers = arms.vanilla(PROMPTS, SHORT.replace(n=2))
    together = perplexity(EMBEDDED / "lm", PROMPTS, answers)
    nats, tokens = 0.0, 0
    for answer in answers:
        alone = perplexity(EMBEDDED / "lm", PROMPTS, [answer])
        nats += math.log(alone) * len(answer.ids)
        tokens += len(answer.ids)
    assert together == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    other = [
        AnswerRecord(**{**vars(answer), "prompt": (answer.prompt + 1) % len(PROMPTS)})
        for answer in answers
    ]
    assert perplexity(EMBEDDED / "lm", PROMPTS, other) > together  # of other prompts, less likely


def test_accepting_everything_equals_plain_sampling(half: Half) -> None:
    answers = half.stars(AlignParams(schedule=NoSchedule(), segment_len=4))
    figures, plain = half.aligned(answers), half.plain_figures()
    assert figures["times"] == pytest.approx([1, 1, 1], abs=0.2)
    assert figures["forced"] == 0
    # The first plain answer under each seed is the same text.
    for name in ("perplexity", "distinct-2", "tokens"):
        assert figures[name] == pytest.approx(plain[name])
    assert guards_hold(figures, plain)


def test_tables_are_by_prompt_for_every_seed(half: Half) -> None:
    assert half.num_plain == 6  # 5, rounded up to as many for each of two seeds
    assert half.guide.shape == half.opinion.shape == (4, 6)
    for answer, reward in zip(half.plain[:3], half.guide[0], strict=False):
        assert (answer.prompt, answer.reward) == (0, reward)
    opinion = half._judge.logits([PROMPTS[3] + half.plain[-1].text])
    assert half.opinion[3, -1] == pytest.approx(opinion[0])


def test_best_of_rows(half: Half) -> None:
    rows = {n: half.best_of_figures(n) for n in (1, 4)}
    assert rows[1]["wins"][0] == pytest.approx(0.5)
    assert rows[4]["guide"] > rows[1]["guide"] == pytest.approx(half.guide.mean())
    assert rows[4]["times"][0] == 4
    assert rows[4]["over_best_of_4"] == [0, 0, 0]


def figures(
    judge: float, times: float = 3.0, perplexity: float = 20.0, forced: float = 0.02
) -> dict[str, object]:
    return {
        "judge": [judge] * 3,
        "times": [times] * 3,
        "guide": judge,
        "positive": 0.5,
        "wins": [0.5] * 3,
        "over_equal_tokens": None,
        "perplexity": perplexity,
        "distinct-2": 0.9,
        "distinct-2 over prompts": 0.4,
        "tokens": 100,
        "forced": forced,
    }


def test_the_configuration_is_chosen_by_rule() -> None:
    plain = figures(0, 1)
    tried = {
        SIXTH: figures(1.0),
        QUARTER: figures(2.0),
        Arm(8, 4.0): figures(3.0, times=4.6),  # spends too much
        Arm(16, 4.0): figures(4.0, perplexity=30),  # is no longer the language
        RAMP: figures(5.0, forced=0.12),  # keeps what was not accepted
    }
    assert best(tried, plain, 4.5) == QUARTER
    assert best(tried, plain, 5.0) == Arm(8, 4.0)
    with pytest.raises(SystemExit, match="no candidate"):
        best({SIXTH: figures(1.0)}, plain, 2.0)
    table = markdown({"vanilla": plain, **{arm.name: row for arm, row in tried.items()}})
    assert [line.split(" | ")[-1] for line in table.splitlines()[2:]] == [
        "hold |",
        "hold |",
        "hold |",
        "hold |",
        "broken |",
        "hold |",
    ]


def test_shipped_settings_are_read_back(arms: Arms) -> None:
    prompts = [f"Film number {index} was" for index in range(8)]
    found = arms.thresholds(prompts, SHORT, segment_len=6, budget=2.0)
    assert found == arms.thresholds(prompts, SHORT, segment_len=6, budget=2.0)
    for schedule in (found, ConstantSchedule(value=0.5)):
        align = AlignParams(schedule=schedule, segment_len=6, num_candidates=1)
        read = AlignParams(**yaml.safe_load(as_shipped(align)))
        if isinstance(schedule, CalibratedSchedule):
            left = {name: schedule.made_for[name] for name in ("reward", "align", "weights")}
            schedule = schedule.replace(made_for=left)  # noqa: PLW2901 - what is left of it
        assert read == align.replace(num_candidates="auto", schedule=schedule)


def test_names_distinguish_configurations() -> None:
    assert len({arm.name for arm in CANDIDATES}) == len(CANDIDATES)
    assert {QUARTER, SIXTH} < set(CANDIDATES)
