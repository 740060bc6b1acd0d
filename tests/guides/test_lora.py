"""Guides fitted with LoRA: a classifier with the language model's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stars_engine import (
    ClassifierReward,
    ConfigError,
    ModelLoadError,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    train_guide,
)
from stars_engine.guides.lora import fit_classifier
from stars_engine.guides.samples import JudgedAnswer
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.types import RewardInput, RewardPrompt

pytestmark = pytest.mark.slow

PROMPTS = [f"{start} {word}" for start in ("This", "The") for word in ("film", "plot", "cast")]
WORDS = ("good", "bad", "fine", "awful")


@pytest.fixture(scope="module")
def samples(engine: StarsEngine) -> list[JudgedAnswer]:
    """Answers whose second word decides the score, whatever follows."""
    codec = engine.model.codec
    found = []
    for index, prompt in enumerate(PROMPTS * 4):
        for place, word in enumerate(WORDS):
            text = f" was {word} and it went on for a while"
            found.append(
                JudgedAnswer(
                    index,
                    tuple(codec.encode_prompt(f"{prompt} {index}")),
                    tuple(codec.encode_continuation(text)),
                    prompt,
                    text,
                    score=10.0 + 3.0 * (place % 2 == 0),
                )
            )
    return found


def test_a_classifier_learns_what_the_first_words_decide(
    engine: StarsEngine, samples: list[JudgedAnswer], tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in engine.model.model.state_dict().items()}
    guide = fit_classifier(engine.model, samples, [1, 8], seed=0, progress=lambda *_: None)
    at = {size: guide.data.states.num_tokens == size for size in (1, 8)}
    scores = np.array([samples[index].score for index in guide.data.states.samples])
    assert np.corrcoef(guide.values[at[8]], scores[at[8]])[0, 1] > 0.9
    assert guide.values[at[1]].std() < 0.2  # " was" says nothing of what follows
    after = engine.model.model.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())

    guide.save(tmp_path, engine.model.codec.tokenizer)
    config = ClassifierReward(name_or_path=str(tmp_path), read="ids")
    reward = ClassifierRewardModel(config, engine.model.codec.fingerprint())
    rows = np.flatnonzero(at[8])[:6]
    inputs = []
    for row in rows:
        sample = samples[guide.data.states.samples[row]]
        text, _ = engine.model.codec.completion_text(sample.prompt_ids, sample.token_ids[:8])
        prompt = RewardPrompt(sample.prompt, token_ids=sample.prompt_ids)
        inputs.append(RewardInput(prompt, text, sample.token_ids[:8]))
    found = np.array([score.value for score in reward.score(inputs)])
    center = np.mean([sample.score for sample in samples])
    assert found + center == pytest.approx(guide.values[rows], abs=1e-3)


def test_the_same_seed_gives_the_same_classifier(
    engine: StarsEngine, samples: list[JudgedAnswer]
) -> None:
    first, second = (
        fit_classifier(engine.model, samples[:24], [8], seed=1, progress=lambda *_: None)
        for _ in range(2)
    )
    assert first.values == pytest.approx(second.values, abs=1e-5)


def test_a_fitted_classifier_guides(engine: StarsEngine, tmp_path: Path) -> None:
    report = train_guide(
        engine,
        tmp_path,
        [f"{prompt} {n}" for prompt in PROMPTS for n in (1, 2)],
        judge=lambda prompt, answer: float(len(answer)),
        num_answers=4,
        sampling=SamplingParams(max_tokens=12),
        shape="lora",
    )
    assert report.head == "classifier, LoRA of rank 16"
    assert list(report.tried) == [f"after epoch {n}" for n in range(1, 5)]
    card = (tmp_path / "README.md").read_text()
    assert 'ClassifierReward(name_or_path=..., read="ids")' in card
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=ClassifierReward(name_or_path=str(tmp_path), read="ids"),
        align={"schedule": NoSchedule(), "segment_len": 5},
    )
    with StarsEngine(config) as guided:
        [result] = guided.generate("This film", sampling=SamplingParams(max_tokens=8, seed=1))
    assert np.isfinite(result.reward)


def test_what_cannot_be_adapted_is_refused(engine: StarsEngine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"soft_value_beta: is for heads.*Hint"):
        train_guide(engine, tmp_path, shape="lora", soft_value_beta=1.0)
    with pytest.raises(ModelLoadError, match=r"shape='lora' adapts a plain model.*Hint"):
        fit_classifier(object(), [], [], seed=0, progress=lambda *_: None)
