"""Weighted sums of rewards: values, vetoes, failures, and parts that are slow."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    Attempt,
    ClassifierReward,
    CompositeReward,
    ConfigError,
    ConstantSchedule,
    FunctionReward,
    NoSchedule,
    RewardError,
    RewardPart,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    standardize,
)
from stars_engine.core.offline import stars
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rewards.composite import CompositeRewardModel
from stars_engine.rewards.loading import load_reward
from stars_engine.runtime.registry import key_of
from stars_engine.testing import TableReward, TabularModel, check_reward_model
from stars_engine.trace import transcript
from stars_engine.types import RewardInput, RewardPrompt, Score
from tests.support.rollouts import make_rollout

TONE = ClassifierReward(name_or_path="stars:embedded-reward")
SAMPLING = SamplingParams(max_tokens=24, seed=1)


def num_words(prompt: str, completion: str) -> float:
    return float(len(completion.split()))


def ends_well(prompt: str, completion: str) -> float:
    return float(completion.endswith("."))


def config_of(align: AlignParams | None = None, **parts: Any) -> StarsConfig:
    return StarsConfig(
        model="stars:embedded-lm",
        reward=CompositeReward(parts=parts),
        align=align or AlignParams(schedule=ConstantSchedule(value=0.5), segment_len=6),
        sampling=SAMPLING,
    )


def composite(floor: float | None = None, **parts: tuple[RewardModel, dict[str, Any]]) -> Any:
    """A composite of reward models in memory, by their weights, means and so on."""
    config = CompositeReward(
        floor=floor,
        parts={name: RewardPart(reward=len, **more) for name, (_, more) in parts.items()},
    )
    return CompositeRewardModel(config, {name: reward for name, (reward, _) in parts.items()})


def item(text: str) -> RewardInput:
    return RewardInput(RewardPrompt("?"), text, ())


def attempts_of(result: StarsResult) -> list[Attempt]:
    return [attempt for segment in result.segments for attempt in segment.attempts]


# --- values ---


@pytest.mark.slow
def test_the_sum_at_real_segment_ends(engine: StarsEngine, borders: list[RewardInput]) -> None:
    """Each part as it is alone; the sum of weight * (r - mean) / std."""
    config = CompositeReward(
        parts={
            "tone": RewardPart(reward=TONE, weight=0.7, mean=0.5, std=2.0),
            "length": RewardPart(reward=num_words, weight=-0.1),
            "end": ends_well,
        }
    )
    fingerprint = engine.model.codec.fingerprint()
    reward = load_reward(config, fingerprint)
    check_reward_model(reward, borders[::9])
    tones = load_reward(TONE, fingerprint).score(borders)
    for border, tone, score in zip(borders, tones, reward.score(borders), strict=True):
        words, end = num_words("", border.text), ends_well("", border.text)
        total = 0.7 * (tone.value - 0.5) / 2.0 - 0.1 * words + end
        assert score.value == pytest.approx(total, abs=1e-4)
        assert score.parts == {
            "tone": pytest.approx(tone.value, abs=1e-4),
            "length": words,
            "end": end,
        }
        assert score.num_tokens == tone.num_tokens


@pytest.mark.slow
def test_parts_are_in_the_trace(engine: StarsEngine) -> None:
    config = config_of(tone=TONE, length={"reward": num_words, "weight": 0.01})
    with StarsEngine(config, model=engine.model) as mine:
        [result] = mine.generate("The plot", sampling=SAMPLING)
        [best] = mine.best_of_n("The plot", 3, sampling=SAMPLING)
    assert result.usage.num_attempts > len(result.segments)
    for attempt in [*attempts_of(result), *attempts_of(best)]:
        assert set(attempt.parts) == {"tone", "length"}
        total = attempt.parts["tone"] + 0.01 * attempt.parts["length"]
        assert attempt.reward == pytest.approx(total, abs=1e-9)
    assert StarsResult.model_validate_json(result.model_dump_json()) == result
    first = attempts_of(result)[0]
    shown = f"(tone {first.parts['tone']:.3g}, length {first.parts['length']:.3g})"
    assert shown in transcript(result)


def test_values_that_are_not_numbers_survive_json() -> None:
    values = {"a": None, "b": -math.inf, "c": 1.5}
    attempt = Attempt(
        reward=-math.inf,
        threshold=0.0,
        acceptance_prob=0.0,
        verdict="rejected",
        eligible=False,
        num_tokens=1,
        parts=values,
    )
    assert Attempt.model_validate_json(attempt.model_dump_json()).parts == values


# --- the same text ---


@pytest.mark.slow
@pytest.mark.parametrize("num_candidates", [1, 4])
def test_the_same_reward_alone_or_in_a_batch(engine: StarsEngine, num_candidates: int) -> None:
    """The text of each does not depend on the batch, nor on how many are drafted at once."""
    prompts = ["The plot", "This movie", "I", "Nobody"]
    align = AlignParams(
        schedule=ConstantSchedule(value=0.8), segment_len=5, num_candidates=num_candidates
    )
    config = config_of(align, tone=TONE, length={"reward": num_words, "weight": 0.02})
    with StarsEngine(config, model=engine.model) as mine:
        together = mine.generate(prompts)
        alone = [mine.generate(prompt)[0] for prompt in prompts]
        others = mine.generate(prompts, align=align.replace(num_candidates=3))
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert [r.token_ids for r in together] == [r.token_ids for r in others]
    assert sum(r.usage.num_attempts for r in together) > sum(len(r.segments) for r in together)


@pytest.mark.slow
def test_one_part_of_weight_one_is_that_reward(engine: StarsEngine) -> None:
    align = AlignParams(schedule=ConstantSchedule(value=0.8), segment_len=5)
    alone = StarsConfig(model="stars:embedded-lm", reward=TONE, align=align, sampling=SAMPLING)
    texts = []
    for config in (alone, config_of(align, tone=TONE)):
        with StarsEngine(config, model=engine.model) as mine:
            texts.append([result.token_ids for result in mine.generate(["The plot", "I"])])
    assert texts[0] == texts[1]


def test_without_an_engine() -> None:
    """The loop over a composite directly."""
    model = TabularModel("ab", lambda _: (0.5, 0.5))
    reward = composite(
        a=(TableReward({"b": 1.0, "ba": 1.0}), {}), b=(TableReward({"ba": 2.0}), {"weight": 0.5})
    )
    rollout = make_rollout(
        align=AlignParams(schedule=ConstantSchedule(value=1.0), segment_len=1, max_attempts=50),
        sampling=SamplingParams(max_tokens=2, temperature=1.0, top_k=None),
    )
    for _ in stars([rollout], model, reward):
        pass
    result = rollout.result()
    assert result.text == "ba"
    assert [segment.reward for segment in result.segments] == [1.0, 2.0]
    assert result.segments[1].attempts[-1].parts == {"a": 1.0, "b": 2.0}


# --- vetoes ---


def test_floors_of_parts_and_of_the_sum() -> None:
    low, high = TableReward({}, default=1.0), TableReward({}, default=5.0)
    parts = {"low": (low, {"weight": 10.0, "mean": 0.5}), "high": (high, {})}

    def vetoed(part_floor: float | None, sum_floor: float | None) -> bool:
        own = {**parts, "low": (low, {"weight": 10.0, "mean": 0.5, "floor": part_floor})}
        [score] = composite(sum_floor, **own).score([item("x")])
        assert score.value == 10.0
        return bool(score.vetoed)

    assert not vetoed(None, None)
    assert vetoed(1.5, None)  # in the part's own units, before the mean is taken off
    assert not vetoed(0.9, None)
    assert vetoed(None, 10.5)
    assert not vetoed(None, 9.5)


def test_a_veto_of_the_part_itself_counts() -> None:
    strict = TableReward({}, default=1.0, vetoed=frozenset({"x"}))
    reward = composite(a=(strict, {"weight": 0.0}), b=(TableReward({}, default=9.0), {}))
    bad, good = reward.score([item("x"), item("y")])
    assert (bad.vetoed, good.vetoed) == (True, False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", [1.0, 0.0, -2.0])
def test_a_part_that_is_not_finite_rejects(value: float, weight: float) -> None:
    odd = TableReward({}, default=value)
    fine = TableReward({}, default=-math.inf if value == math.inf else 1.0)
    reward = composite(odd=(odd, {"weight": weight}), fine=(fine, {}))
    [score] = reward.score([item("x")])
    assert not math.isfinite(score.value)
    assert not score.eligible


# --- failures ---


@pytest.mark.parametrize("on_failure", ["raise", "reject", "retry"])
def test_a_part_follows_its_own_failure_policy(engine: StarsEngine, on_failure: str) -> None:
    calls: dict[str, int] = {}
    lock = threading.Lock()

    def fussy(prompt: str, completion: str) -> float:
        with lock:
            count = calls[prompt] = calls.get(prompt, 0) + 1
        if prompt == "bad" and count == 2:
            raise OSError("no answer")
        return 1.0

    retrying = {"retry_wait_s": 0.0} if on_failure == "retry" else {}
    part = FunctionReward(function=fussy, on_failure=on_failure, **retrying)
    align = AlignParams(schedule=ConstantSchedule(value=-99.0), segment_len=6, num_candidates=1)
    config = config_of(align, tone=TONE, fussy=part)
    with StarsEngine(config, model=engine.model) as mine:
        good, bad = mine.generate(["good", "bad"], return_exceptions=True)
    assert good.finish_reason in ("length", "stop")
    if on_failure == "raise":
        assert isinstance(bad, RewardError)
        assert "the reward fussy failed: OSError: no answer" in str(bad)
        assert len(bad.result.segments) == 1
    elif on_failure == "reject":
        [failed] = [attempt for attempt in attempts_of(bad) if not attempt.eligible]
        assert failed.parts["fussy"] is None
        assert math.isfinite(failed.parts["tone"])
        assert bad.usage.num_reward_failures == 1
        assert "fussy failed" in transcript(bad)
    else:
        assert bad.usage.num_reward_failures == 0
        assert bad.finish_reason in ("length", "stop")


def test_the_first_failing_part_is_reported() -> None:
    class Fails:
        def __init__(self, name: str) -> None:
            self.name = name

        def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
            raise OSError(self.name)

    reward = composite(fine=(TableReward({}), {}), zed=(Fails("a"), {}), b=(Fails("b"), {}))
    with pytest.raises(
        RewardError, match=r"^part 'zed' of the composite: the reward a failed"
    ) as caught:
        reward.score([item("x")])
    assert isinstance(caught.value.__cause__, OSError)


# --- models and functions together ---


@pytest.mark.slow
def test_functions_run_while_models_score(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def note(prompt: str, completion: str) -> float:
        asked.set()
        return 1.0

    score = ClassifierRewardModel.score

    def after_the_function(self: Any, inputs: Sequence[RewardInput]) -> list[Score]:
        assert asked.wait(20), "the function waits for the model"
        return score(self, inputs)

    config = config_of(AlignParams(schedule=NoSchedule(), segment_len=6), tone=TONE, note=note)
    with StarsEngine(config, model=engine.model) as mine:
        mine.load()
        monkeypatch.setattr(ClassifierRewardModel, "score", after_the_function)
        [result] = mine.generate("The plot")
    assert result.finish_reason in ("length", "stop")


@pytest.mark.slow
def test_a_slow_part_delays_only_its_own_rollout(engine: StarsEngine) -> None:
    release = threading.Event()

    def slow(prompt: str, completion: str) -> float:
        if prompt == "slow":
            assert release.wait(60)
        return 1.0

    align = AlignParams(schedule=NoSchedule(), segment_len=6)
    with StarsEngine(config_of(align, tone=TONE, slow=slow), model=engine.model) as mine:
        waiting = mine.submit("slow")
        others = mine.generate(["The plot", "I"])  # ends although the first does not
        assert all(result.finish_reason in ("length", "stop") for result in others)
        assert not waiting.done()
        release.set()
        [result] = waiting.result(60)
    assert result.segments


def test_models_of_many_rollouts_share_a_batch(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    score = ClassifierRewardModel.score

    def spy(self: Any, inputs: Sequence[RewardInput]) -> list[Score]:
        sizes.append(len(inputs))
        return score(self, inputs)

    monkeypatch.setattr(ClassifierRewardModel, "score", spy)
    align = AlignParams(schedule=NoSchedule(), segment_len=24, num_candidates=1)
    with StarsEngine(config_of(align, tone=TONE, end=ends_well), model=engine.model) as mine:
        mine.generate(["The plot", "I", "Nobody"])
    assert max(sizes) == 3


# --- configs ---


def test_keys_distinguish_composites() -> None:
    def one(weight: float = 1.0, function: Any = num_words, **more: Any) -> str:
        parts = {"a": TONE, "b": RewardPart(reward=function, weight=weight, **more)}
        return key_of(CompositeReward(parts=parts))

    assert one() == one()
    different = {one(), one(2.0), one(function=ends_well), one(std=2.0), one(floor=0.0)}
    different |= {one(function="math:sin"), one(function="math:cos")}
    different.add(key_of(CompositeReward(parts={"a": TONE, "c": num_words})))
    different.add(key_of(CompositeReward(parts={"a": TONE, "b": num_words}, floor=0.0)))
    here = CompositeReward(parts={"a": ClassifierReward(name_or_path="./a")})
    there = CompositeReward(parts={"a": ClassifierReward(name_or_path=str(Path.cwd() / "a"))})
    assert key_of(here) == key_of(there)
    assert len(different) == 9


@pytest.mark.slow
def test_equal_composites_share_one_load(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []
    load = ClassifierRewardModel.__init__

    def spy(self: Any, *arguments: Any) -> None:
        loads.append(self)
        load(self, *arguments)

    monkeypatch.setattr(ClassifierRewardModel, "__init__", spy)
    with (
        StarsEngine.shared(config_of(tone=TONE, end=ends_well)) as one,
        StarsEngine.shared(config_of(tone=TONE, end=ends_well)) as two,
        StarsEngine.shared(config_of(tone=TONE, end=num_words)) as other,
    ):
        assert one.reward is two.reward
        assert one.reward is not other.reward
        assert len(loads) == 2
        assert one.generate("The plot")[0].text == two.generate("The plot")[0].text


def test_composites_survive_files(tmp_path: Path) -> None:
    config = config_of(
        tone=RewardPart(reward=TONE, weight=0.7, mean=0.5, std=2.0, floor=-3.0),
        step={"kind": "process", "name_or_path": "a/b", "convention": "skywork-prm"},
        guard={"kind": "yes_no", "name_or_path": "c/d", "preset": "llama-guard"},
        sin="math:sin",
    )
    for name in ("config.yaml", "config.json"):
        config.to_file(tmp_path / name)
        again = StarsConfig.from_file(tmp_path / name)
        assert again == config
        assert key_of(again.reward) == key_of(config.reward)
    live = config_of(tone=TONE, end=ends_well)
    with pytest.raises(ConfigError, match=r"reward\.parts\.end\.reward.*'package\.module:name'"):
        live.to_file(tmp_path / "live.yaml")
    assert not (tmp_path / "live.yaml").exists()


def test_composites_within_composites_are_refused() -> None:
    inner = CompositeReward(parts={"a": TONE})
    for value in (inner, {"kind": "composite", "parts": {"a": "b/c"}}, {"reward": inner}):
        with pytest.raises(ConfigError, match=r"composite within a composite.*multiplied"):
            CompositeReward(parts={"outer": value})


# --- standardised ---


@pytest.mark.slow
def test_parts_are_scaled_by_a_plain_pilot(engine: StarsEngine) -> None:
    """Afterwards each part has mean 0 and deviation 1 on the same texts."""

    def length(prompt: str, completion: str) -> float:
        return 1000.0 * len(completion)

    reward = CompositeReward(parts={"tone": "stars:embedded-reward", "length": length})
    prompts = ["The film", "My brother", "This actor", "One scene"]
    sampling = SamplingParams(max_tokens=32)
    config = StarsConfig(model="stars:embedded-lm", reward=reward)
    with StarsEngine(config, model=engine.model) as own:
        scaled = standardize(own, prompts, segment_len=8, sampling=sampling)
    assert scaled.parts["length"].std > 1000 > scaled.parts["tone"].std
    values: dict[str, list[float]] = {"tone": [], "length": []}
    with StarsEngine(config.replace(reward=scaled), model=engine.model) as own:
        plain = AlignParams(schedule=NoSchedule(), segment_len=8)
        for result in own.generate(prompts, sampling=sampling.replace(seed=3), align=plain):
            for segment in result.segments:
                for name, value in segment.attempts[0].parts.items():
                    values[name].append(scaled.parts[name].standardised(value))
    for found in values.values():
        mean = sum(found) / len(found)
        assert mean == pytest.approx(0, abs=1e-4)
        assert sum((v - mean) ** 2 for v in found) / len(found) == pytest.approx(1, abs=1e-3)


def test_rewards_that_cannot_be_scaled_are_an_error(engine: StarsEngine) -> None:
    with pytest.raises(ConfigError, match=r"reward: 'classifier' has no parts"):
        standardize(engine, ["A"])
    flat = CompositeReward(parts={"flat": lambda prompt, completion: 2.0})
    config = StarsConfig(model="stars:embedded-lm", reward=flat)
    with (
        StarsEngine(config, model=engine.model) as own,
        pytest.raises(ConfigError, match=r"parts\.flat: is 2\.0 on all"),
    ):
        standardize(own, ["A"], sampling=SamplingParams(max_tokens=16))
