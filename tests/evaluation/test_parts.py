"""Parts of an evaluation: thresholds, noisy guides, perplexity, stored scores, preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from stars_engine import (
    AlignParams,
    AutoSchedule,
    ConfigError,
    FunctionReward,
    LinearSchedule,
    NoSchedule,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.evaluation import PlainTarget, RejectionArm, StarsArm, VanillaArm
from stars_engine.evaluation.judges import Judges, vader
from stars_engine.evaluation.noisy import NoisyReward
from stars_engine.evaluation.perplexity import Likelihood, perplexity
from stars_engine.evaluation.score_store import ScoreStore
from stars_engine.evaluation.statistics import best_of
from stars_engine.evaluation.thresholds import Thresholds
from stars_engine.schedules import CalibratedSchedule
from stars_engine.testing import TableReward
from stars_engine.types import RewardInput, RewardPrompt
from training.tuned import preference_pairs

TOPICS = ["rain", "war", "love", "cats", "money", "time", "snow", "bread"]
OPENINGS = [f"The film about {topic}" for topic in TOPICS]
PLAIN = np.random.default_rng(0).normal(size=(8, 16))


def thresholds(directory: Path, prompts: Sequence[str] = OPENINGS) -> Thresholds:
    return Thresholds(directory, prompts, SamplingParams(max_tokens=16))


def test_targets_are_those_of_plain_answers(engine: StarsEngine, tmp_path: Path) -> None:
    arm = StarsArm(
        align={"schedule": {"kind": "linear", "target": 0, "initial_weight": 0.3}},
        target=PlainTarget(best_of=4, offset_sigmas=0.5),
    )
    asked = []

    def plain(n: int) -> np.ndarray:
        asked.append(n)
        return PLAIN

    align = thresholds(tmp_path).resolve(arm, engine.config, lambda: engine, "key", plain)
    spread = np.sqrt(PLAIN.var(1, ddof=1).mean())
    expected = best_of(4, PLAIN, PLAIN).mean() + 0.5 * spread
    assert isinstance(align.schedule, LinearSchedule)
    assert align.schedule.target == pytest.approx(expected, abs=1e-4)
    assert align.schedule.initial_weight == 0.3
    assert align.keep_rejected_text
    assert asked == [4]
    whole = thresholds(tmp_path).resolve(
        RejectionArm(target=PlainTarget(best_of=2)), engine.config, lambda: engine, "key", plain
    )
    assert whole.segment_len == 16
    assert whole.schedule.value == pytest.approx(best_of(2, PLAIN, PLAIN).mean(), abs=1e-4)


@pytest.mark.slow
def test_a_calibration_is_stored(
    engine: StarsEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = StarsArm(align={"schedule": AutoSchedule(budget=1.5, segment_len=8)}, tilt=1.0)
    seen: list[tuple[int, int]] = []
    first = thresholds(tmp_path).resolve(
        arm,
        engine.config,
        lambda: engine,
        "key",
        lambda _: PLAIN,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[0][0] < seen[-1][0] == seen[-1][1]
    assert isinstance(first.schedule, CalibratedSchedule)
    assert first.segment_len == 8
    [file] = tmp_path.glob("thresholds-*.json")
    monkeypatch.setattr("stars_engine.evaluation.thresholds.calibrate", None)
    assert (
        thresholds(tmp_path).resolve(arm, engine.config, lambda: engine, "key", lambda _: PLAIN)
        == first
    )
    flat = thresholds(tmp_path).resolve(
        arm.replace(tilt=0), engine.config, lambda: engine, "key", lambda _: PLAIN
    )
    moved = [
        a.offset - b.offset
        for a, b in zip(first.schedule.stages, flat.schedule.stages, strict=True)
    ]
    sigmas = [stage.sigma for stage in flat.schedule.stages]
    assert moved == pytest.approx([-0.5 * sigmas[0], 0.5 * sigmas[1]])
    assert file.exists()


def test_too_few_tuning_prompts_are_explained(engine: StarsEngine, tmp_path: Path) -> None:
    arm = StarsArm(align={"schedule": AutoSchedule(budget=1.5)})
    with pytest.raises(ConfigError, match=r"at least 8 tuning prompts; there are 2.*Hint"):
        thresholds(tmp_path, OPENINGS[:2]).resolve(
            arm, engine.config, lambda: engine, "key", lambda _: PLAIN
        )


def test_arms_without_a_test_have_no_thresholds(engine: StarsEngine, tmp_path: Path) -> None:
    align = thresholds(tmp_path).resolve(
        VanillaArm(), engine.config, lambda: engine, "key", lambda _: PLAIN
    )
    assert align == AlignParams(schedule=NoSchedule(), keep_rejected_text=True)


def test_noise_is_on_unfinished_text_alone() -> None:
    texts = [f"text {index}" for index in range(2000)]
    noisy = NoisyReward(TableReward({}, default=1.0), 2.0, max_tokens=4)
    prompt = RewardPrompt("x")
    unfinished = [RewardInput(prompt, text, (1, 2)) for text in texts]
    values = np.array([score.value for score in noisy.score(unfinished)])
    assert values.mean() == pytest.approx(1.0, abs=0.2)
    assert values.std() == pytest.approx(2.0, rel=0.06)
    assert [score.value for score in noisy.score(unfinished)] == values.tolist()
    whole = [
        RewardInput(prompt, "text 1", (1, 2), finished=True),
        RewardInput(prompt, "text 1", (1, 2, 3, 4)),
    ]
    assert [score.value for score in noisy.score(whole)] == [1.0, 1.0]


def test_perplexity_is_that_of_the_unchanged_model(
    engine: StarsEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("The film", " is a good one."), ("I", " liked it"), ("Short", "")]
    path = tmp_path / "scores.jsonl"
    found = Likelihood(StarsConfig(), ScoreStore(path)).nats([*pairs, pairs[0]])
    assert found.pop() == found[0]
    codec = engine.model.codec
    for (prompt, answer), (nats, count) in zip(pairs, found, strict=True):
        before, after = codec.encode_prompt(prompt), codec.encode_continuation(answer)
        assert count == len(after)
        if after:
            with torch.inference_mode():
                logits = engine.model.model(torch.tensor([[*before, *after]])).logits[0]
            logprobs = logits[len(before) - 1 : -1].double().log_softmax(-1)
            expected = -sum(float(logprobs[i, token]) for i, token in enumerate(after))
            assert nats == pytest.approx(expected, rel=1e-4)
    total = sum(nats for nats, _ in found)
    assert perplexity(found) == pytest.approx(np.exp(total / sum(count for _, count in found)))
    assert np.isnan(perplexity([(0.0, 0)]))
    again = Likelihood(StarsConfig(), ScoreStore(path))
    monkeypatch.setattr(again, "_load", None)  # nothing is left to compute
    assert again.nats(pairs) == found


def test_scores_are_stored_and_asked_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def judge(prompts: list[str], answers: list[str]) -> list[float]:
        asked.extend(answers)
        return [
            float(len(prompt + answer)) for prompt, answer in zip(prompts, answers, strict=True)
        ]

    configs = {"length": FunctionReward(function=judge, batched=True)}
    path = tmp_path / "scores.jsonl"
    pairs = [("a", "bc"), ("a", "bcd"), ("a", "bc")]
    assert Judges(configs, ScoreStore(path)).scores("length", pairs) == [3, 4, 3]
    assert sorted(asked) == ["bc", "bcd"]
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    assert Judges(configs, ScoreStore(path)).scores("length", [*pairs, ("b", "")]) == [3, 4, 3, 1]
    assert sorted(asked) == ["", "bc", "bcd"]
    assert len(path.read_text().splitlines()) == 3


def test_a_judge_that_fails_is_explained(tmp_path: Path) -> None:
    def judge(prompts: list[str], answers: list[str]) -> list[float]:
        raise ValueError("no opinion")

    judges = Judges(
        {"none": FunctionReward(function=judge, batched=True)}, ScoreStore(tmp_path / "scores")
    )
    with pytest.raises(RewardError, match="no opinion"):
        judges.scores("none", [("a", "b")])


def test_vader_tells_praise_from_blame() -> None:
    praise, blame, nothing = vader([], ["A wonderful film, I loved it.", "Awful and boring.", ""])
    assert praise > 0.5 > -0.3 > blame
    assert nothing == 0


@pytest.mark.slow
def test_preference_pairs_are_the_best_and_worst_by_the_guide(engine: StarsEngine) -> None:
    sampling = SamplingParams(max_tokens=8, seed=5)
    pairs = preference_pairs(StarsConfig(), OPENINGS[:3], samples=4, sampling=sampling)
    results = engine.vanilla(OPENINGS[:3], sampling=sampling.replace(n=4))
    for index, pair in enumerate(pairs):
        own = {r.text: r.reward for r in results if r.prompt_index == index}
        assert pair["prompt"] == OPENINGS[index]
        assert own[pair["chosen"]] == pytest.approx(max(own.values()), abs=1e-5)
        assert own[pair["rejected"]] == pytest.approx(min(own.values()), abs=1e-5)
