"""Attributes of custom models and rewards that raise when they are read, or have odd values.

An attribute that can never be read is an error of loading. One that cannot be read once ends at
most the request that needs it. Others get the text that they get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    EngineClosedError,
    ModelLoadError,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsError,
    StarsResult,
)
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.rewards.reward_requests import RewardRequest, RoutedRequest
from stars_engine.runtime.object_checks import OF_MODELS, OF_REWARDS
from stars_engine.types import RewardInput, Score
from tests.support.engines import idle, wait_until
from tests.support.marks import slow_but_each
from tests.support.watched import Reads, Watched

PROMPTS = ["The", "This movie was", "I had heard so much about it", "No", "A", "It is", "My", "We"]
SAMPLING = [SamplingParams(seed=number, max_tokens=8) for number in range(len(PROMPTS))]
ALIGN = AlignParams(
    schedule=ConstantSchedule(value=1.0), segment_len=4, max_attempts=3, num_candidates=2
)
# Read by each prompt with a grammar: it computes the bytes of the vocabulary.
NOT_CHECKED = {"grammars"}


class Whole:
    """A reward with all optional members, computed on the engine's thread."""

    bytes_per_token = 0
    failures = FailurePolicy()
    name = "whole"
    probe = client = server_stats = None
    is_timed = True

    def score(self, inputs: Sequence[RewardInput]) -> list[Any]:
        return [Score(float(len(item.text) % 3), num_tokens=len(item.text)) for item in inputs]

    def limit_cache(self, max_bytes: int | None) -> None: ...
    def free_unused(self) -> None: ...
    def invalidate_if_changed(self) -> None: ...
    def memory_usage(self) -> dict[str, int]:
        return {"kv_cache": 1}


class Offloaded(Whole):
    """The same on worker threads."""

    max_concurrency, timeout_s, batched = 4, 60.0, False
    ends_overdue_calls = False
    threads: Any = ()

    def end_calls(self) -> None: ...


class Gathering(Whole):
    """The same, as a composite with one part."""

    def __init__(self) -> None:
        self.part = Whole()

    def divide(self, request: RewardRequest) -> list[RoutedRequest]:
        return [RoutedRequest(self.part, request)]

    def models(self) -> list[Any]:
        return [self.part]


KINDS: dict[str, Callable[[], Any]] = {
    "on the engine's thread": Whole,
    "offloaded": Offloaded,
    "composite": Gathering,
}


def engine_of(engine: StarsEngine, reward: Any, model: Any = None) -> StarsEngine:
    return StarsEngine(StarsConfig(align=ALIGN), model=model or engine.model, reward=reward)


def ask_all(mine: StarsEngine) -> list[Any]:
    """The outcomes of eight calls at once: texts, and errors."""
    futures = [
        mine.submit(prompt, sampling=sampling, return_exceptions=True)
        for prompt, sampling in zip(PROMPTS, SAMPLING, strict=True)
    ]
    outcomes = []
    for future in futures:
        try:
            [outcome] = future.result(60)
        except StarsError as error:
            outcome = error
        outcomes.append(outcome.text if isinstance(outcome, StarsResult) else outcome)
    return outcomes


@pytest.fixture(scope="module")
def alone(engine: StarsEngine) -> list[str]:
    with engine_of(engine, Whole()) as mine:
        return [
            mine.generate(prompt, sampling=sampling)[0].text
            for prompt, sampling in zip(PROMPTS, SAMPLING, strict=True)
        ]


def watched(engine: StarsEngine, owner: str, reads: Reads) -> StarsEngine:
    """An engine that notes reads of its model, or of a reward of some kind."""
    if owner == "model":
        return engine_of(engine, Whole(), Watched(engine.model, reads))
    return engine_of(engine, Watched(KINDS[owner](), reads))


OWNERS = ["model", *KINDS]
CASES = [
    *[("model", name) for name in OF_MODELS],
    *[("offloaded", name) for name in OF_REWARDS if name not in ("divide", "models")],
    *[("composite", name) for name in ("divide", "models")],
]
ALL_CASES = [*CASES, *[(owner, name) for owner in KINDS for name in OF_REWARDS]]


@pytest.mark.parametrize("owner", OWNERS)
def test_all_attributes_that_are_read_are_checked(
    engine: StarsEngine, alone: list[str], owner: str
) -> None:
    reads = Reads()
    with watched(engine, owner, reads) as mine:
        assert ask_all(mine) == alone
        mine.stats()
    assert set(reads.counts) <= {*(OF_MODELS if owner == "model" else OF_REWARDS), *NOT_CHECKED}


def strike(
    engine: StarsEngine, alone: list[str], attribute: tuple[str, str], error: BaseException, at: int
) -> bool:
    """Let one read fail after loading, with eight requests; return whether there was that read."""
    (owner, name), reads = attribute, Reads()
    with watched(engine, owner, reads) as mine:
        mine.load()
        reads.arm(name, error, at)
        outcomes = ask_all(mine)
        mine.stats()
        has_struck = reads.has_struck
        reads.arm("", None)
        failed = [outcome for outcome in outcomes if not isinstance(outcome, str)]
        assert all(isinstance(outcome, StarsError) for outcome in failed)
        assert not any(isinstance(outcome, EngineClosedError) for outcome in failed)
        assert all("Hint:" in str(outcome) for outcome in failed)
        assert len(failed) <= 1
        assert [text for text in outcomes if isinstance(text, str)] == [
            text for outcome, text in zip(outcomes, alone, strict=True) if isinstance(outcome, str)
        ]
        assert ask_all(mine) == alone
        wait_until(lambda: idle(mine))
        reads.arm(name, error)  # while it is closed
    return has_struck


@pytest.mark.parametrize(("owner", "name"), slow_but_each(4, CASES))
def test_an_attribute_that_cannot_be_read_once(
    engine: StarsEngine, alone: list[str], owner: str, name: str
) -> None:
    strike(engine, alone, (owner, name), SystemExit(3), 2)


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), sorted({*ALL_CASES}))
def test_an_attribute_that_cannot_be_read_at_each_of_many_reads(
    engine: StarsEngine, alone: list[str], owner: str, name: str
) -> None:
    for at in (1, 3, 6, 14):
        if not strike(engine, alone, (owner, name), ValueError("unreadable"), at):
            break


@pytest.mark.parametrize(("owner", "name"), slow_but_each(4, CASES))
def test_an_attribute_that_can_never_be_read_is_an_error_of_loading(
    engine: StarsEngine, alone: list[str], owner: str, name: str
) -> None:
    reads = Reads()
    reads.arm(name, SystemExit(3))
    with watched(engine, owner, reads) as mine:
        [error, *others] = ask_all(mine)
        assert isinstance(error, ModelLoadError)
        assert f"the attribute {name!r} of the" in str(error)
        assert "SystemExit: 3" in error.args[0]
        assert "Hint:" in str(error)
        assert {type(other) for other in others} == {ModelLoadError}
        reads.arm("", None)
        assert ask_all(mine) == alone


# --- odd values ---

ODD = {
    "max_concurrency": [0, -1, "8", None, 2.5],
    "timeout_s": [0, -1.0, "soon", float("nan")],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, found in ODD.items() for v in found])
def test_an_offloaded_reward_with_a_wrong_value_is_an_error_of_loading(
    engine: StarsEngine, name: str, value: object
) -> None:
    reward = Offloaded()
    setattr(reward, name, value)
    with engine_of(engine, reward) as mine, pytest.raises(ModelLoadError, match=name) as caught:
        mine.load()
    assert "Hint:" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 0), ("context_len", "long")])
def test_a_model_with_a_wrong_value_is_an_error_of_loading(
    engine: StarsEngine, name: str, value: object
) -> None:
    class Wrong:
        def __getattr__(self, other: str) -> Any:
            return value if other == name else getattr(engine.model, other)

    words = f"{name}={value!r} is not allowed"
    with engine_of(engine, Whole(), Wrong()) as mine, pytest.raises(ModelLoadError, match=words):
        mine.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("failures", 3),
        ("failures", ["none yet"]),
        ("name", 7),
        ("name", "x" * 10**6),
        ("threads", 4),
        ("is_timed", "often"),
        ("client", "http://localhost"),
        ("server_stats", {"num_requests": 1}),
        ("bytes_per_token", "12"),
        ("memory_usage", lambda: {"kv_cache": "much"}),
        ("memory_usage", lambda: None),
    ],
)
def test_attributes_that_mean_something_else_change_nothing(
    engine: StarsEngine, alone: list[str], name: str, value: object
) -> None:
    reward = Offloaded()
    setattr(reward, name, value)
    with engine_of(engine, reward) as mine:
        assert ask_all(mine) == alone
        assert mine.stats().num_finished == len(PROMPTS)
        assert isinstance(mine._runtime.threads, list)


SCORES = {
    "tokens": lambda: Score(1.0, num_tokens=None),  # type: ignore[arg-type]
    "text": lambda: Score(1.0, num_tokens="12"),  # type: ignore[arg-type]
    "nan tokens": lambda: Score(1.0, num_tokens=float("nan")),  # type: ignore[arg-type]
    "negative": lambda: Score(1.0, num_tokens=-1),
    "parts": lambda: Score(1.0, parts=["a", "b"]),  # type: ignore[arg-type]
    "part": lambda: Score(1.0, parts={"a": "b"}),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", SCORES)
def test_a_score_with_a_wrong_field_ends_its_request_only(
    engine: StarsEngine, alone: list[str], kind: str, score: str
) -> None:
    reward = KINDS[kind]()
    scorer = reward.part if kind == "composite" else reward

    def scores(inputs: Sequence[RewardInput]) -> list[Score]:
        found = Whole.score(scorer, inputs)
        return [
            SCORES[score]() if item.prompt.text == PROMPTS[2] else right
            for item, right in zip(inputs, found, strict=True)
        ]

    scorer.score = scores
    with engine_of(engine, reward) as mine:
        outcomes = ask_all(mine)
        assert isinstance(outcomes.pop(2), RewardError)
        assert outcomes == [*alone[:2], *alone[3:]]


@pytest.mark.parametrize("place", ["divide", "garbage", "reply"])
def test_a_composite_that_fails_ends_its_request_only(
    engine: StarsEngine, alone: list[str], place: str
) -> None:
    class Failing(Gathering):
        def divide(self, request: RewardRequest) -> list[Any]:
            def fail(_: object) -> None:
                raise SystemExit(3)

            if request.input.prompt.text != PROMPTS[2]:
                return super().divide(request)
            if place == "divide":
                raise SystemExit(3)
            if place == "garbage":
                return [(self.part, "a request")]
            return [RoutedRequest(self.part, RewardRequest(request.input, fail, request.requester))]

    with engine_of(engine, Failing()) as mine:
        outcomes = ask_all(mine)
        assert isinstance(outcomes.pop(2), RewardError)
        assert outcomes == [*alone[:2], *alone[3:]]


@pytest.mark.parametrize("error", [ValueError("broken"), MemoryError(), SystemExit(3)], ids=repr)
def test_a_check_of_weights_that_fails_once_ends_no_request(
    engine: StarsEngine, alone: list[str], error: BaseException
) -> None:
    class FailsOnce(Whole):
        num_checks = 0

        def invalidate_if_changed(self) -> None:
            self.num_checks += 1
            if self.num_checks == 1:
                raise error

    reward = FailsOnce()
    with engine_of(engine, reward) as mine:
        assert ask_all(mine) == alone
    assert reward.num_checks > 1
