"""Value heads as rewards: what they read while drafting is what a plain pass reads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks.tiny_models import random_model
from stars_engine import (
    AlignParams,
    CompositeReward,
    ConfigError,
    ConstantSchedule,
    LinearSchedule,
    ModelLoadError,
    NoSchedule,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    ValueReward,
)
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import TransformersModel
from stars_engine.core.offline import best_of_n, stars, vanilla
from stars_engine.files.config_files import text_of
from stars_engine.hidden_states.value_head import POOLINGS, ValueHead
from stars_engine.rewards.loading import load_reward
from stars_engine.rewards.value import ValueRewardModel
from stars_engine.testing import TabularModel, check_reward_model
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.accounts import account
from tests.support.rollouts import make_rollout
from tests.support.value_heads import random_head

PROMPTS = ["This movie", "The acting in this film was"]
SAMPLING = SamplingParams(seed=5, max_tokens=14)


@pytest.fixture(scope="module")
def backend(engine: StarsEngine) -> TransformersBackend:
    """The embedded language model, with probes of its own."""
    inner = engine.model
    return TransformersBackend(
        TransformersModel(model=inner.model, tokenizer=inner.codec.tokenizer)
    )


def engine_of(backend: TransformersBackend, reward: Any, **align: Any) -> StarsEngine:
    settings = AlignParams(
        **{"schedule": ConstantSchedule(value=0.0), "segment_len": 6, "max_attempts": 4, **align}
    )
    config = StarsConfig(model="stars:embedded-lm", reward=reward, align=settings)
    return StarsEngine(config, model=backend)


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "hidden"), list(zip(POOLINGS, [5, None, 5], strict=True)))
def test_rewards_are_those_of_plain_passes(
    pooling: Any, hidden: int | None, backend: TransformersBackend
) -> None:
    """At every border, whatever the number of candidates and whoever else is in the batch."""
    head = random_head(backend, pooling, hidden=hidden)
    reward = ValueReward(head=head)
    with engine_of(backend, reward, schedule=ConstantSchedule(value=median(head, backend))) as one:
        alone = [one.generate(prompt, sampling=SAMPLING)[0] for prompt in PROMPTS]
        runs = [
            one.generate(
                PROMPTS, sampling=SAMPLING, align=one.config.align.replace(num_candidates=m)
            )
            for m in (1, 4)
        ]
        assert any(result.usage.num_attempts > len(result.segments) for result in alone)
        for run in runs:
            assert [account(result) for result in run] == [account(result) for result in alone]
    for prompt, result in zip(PROMPTS, alone, strict=True):
        ids = backend.codec.encode_prompt(prompt)
        [states] = backend.read_states([[*ids, *result.token_ids]], head.layers)
        values = head.values(head.new_probe()(states[len(ids) - 1 :]).numpy())
        sizes = np.cumsum([len(segment.token_ids) for segment in result.segments])
        rewards = [segment.reward for segment in result.segments]
        assert rewards == pytest.approx(values[sizes].tolist(), abs=1e-4)


def median(head: ValueHead, backend: TransformersBackend) -> float:
    """A threshold that some candidates pass."""
    rows = [backend.codec.encode_prompt(prompt) for prompt in PROMPTS]
    states = backend.read_states([[*row, *range(20, 30)] for row in rows], head.layers)
    return float(np.median([head.value(head.new_probe()(each).numpy()) for each in states]))


def test_values_of_a_head_are_its_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(5, 6, generator=generator), torch.randn(1, 5, generator=generator)]
    biases = [torch.randn(5, generator=generator), torch.randn(1, generator=generator)]
    states = torch.randn(7, 6, generator=generator)

    def network(rows: torch.Tensor) -> torch.Tensor:
        return torch.relu(rows @ weights[0].T + biases[0]) @ weights[1].T + biases[1]

    expected = {
        "last": [network(states[t]).item() for t in range(7)],
        "mean": [network(states[: t + 1].mean(0)).item() for t in range(7)],
        "mean_score": [network(states[: t + 1]).mean().item() for t in range(7)],
    }
    for pooling, values in expected.items():
        head = ValueHead((1,), pooling, weights, biases)
        features = head.new_probe()(states).numpy()
        assert head.values(features).tolist() == pytest.approx(values, abs=1e-5)
        for size in range(1, 8):
            assert head.value(features[:size]) == pytest.approx(values[size - 1], abs=1e-5)


def test_the_prompt_alone_has_a_value(backend: TransformersBackend) -> None:
    """A schedule may start from it; it is the value at the prompt's last token."""
    head = random_head(backend)
    model = ValueRewardModel(ValueReward(head=head), backend)
    ids = backend.codec.encode_prompt("This movie")
    schedule = LinearSchedule(target=-1e3, initial_weight=0.5)
    rollout = make_rollout(ids, align=AlignParams(schedule=schedule, segment_len=4))
    rollout.sampling = SAMPLING
    for _ in stars([rollout], backend, model):
        pass
    expected = model.score([RewardInput(RewardPrompt("", tuple(ids)), "", ())])[0].value
    assert rollout.prompt_reward == pytest.approx(expected, abs=1e-4)


def test_baselines_score_whole_answers(backend: TransformersBackend) -> None:
    """Their earlier segments are not scored, but their features are kept."""
    head = random_head(backend)
    model = ValueRewardModel(ValueReward(head=head), backend)
    ids = backend.codec.encode_prompt("This movie")
    rewards = []
    for run in (vanilla, best_of_n, stars):
        align = AlignParams(schedule=NoSchedule(), segment_len=4, num_candidates=2)
        rollout = make_rollout(ids, align=align, sampling=SAMPLING, seed=3)
        for _ in run([rollout], backend, model, **({"n": 1} if run is best_of_n else {})):
            pass
        rewards.append(rollout.result())
    assert len({result.text for result in rewards}) == 1
    first = rewards[0].reward
    assert [result.reward for result in rewards] == pytest.approx([first] * 3, abs=1e-4)


@pytest.mark.slow
def test_a_fork_keeps_what_was_read(backend: TransformersBackend) -> None:
    model = ValueRewardModel(ValueReward(head=random_head(backend)), backend)
    ids = backend.codec.encode_prompt("This movie")
    rollout = make_rollout(
        ids, align=AlignParams(schedule=NoSchedule(), segment_len=4), sampling=SAMPLING
    )
    events = stars([rollout], backend, model)
    next(events)
    fork = rollout.fork()
    for _ in (*events, *stars([fork], backend, model)):
        pass
    assert fork.token_ids == rollout.token_ids
    assert fork.reward == pytest.approx(rollout.reward, abs=1e-5)


def test_the_contract_without_drafts(backend: TransformersBackend) -> None:
    model = ValueRewardModel(ValueReward(head=random_head(backend)), backend)
    prompt = RewardPrompt("", (5, 6, 7))
    items = [RewardInput(prompt, "", tuple(range(20, 20 + size))) for size in range(5)]
    check_reward_model(model, items)
    assert model.score(items)[-1].num_tokens == 7
    with pytest.raises(RewardError, match=r"prompt's token ids.*Hint"):
        model.score([RewardInput(RewardPrompt("text"), "", (3,))])


def test_heads_are_files(backend: TransformersBackend, tmp_path: Path) -> None:
    head = random_head(backend, "mean_score", hidden=4)
    head.save(tmp_path / "head")
    loaded = ValueHead.load(tmp_path / "head")
    assert (loaded.layers, loaded.pooling) == (head.layers, head.pooling)
    rows = np.random.default_rng(0).normal(size=(3, 4))
    assert loaded.value(rows) == head.value(rows)
    reward = load_reward(ValueReward(name_or_path=str(tmp_path / "head")), None, backend)
    assert isinstance(reward, ValueRewardModel)
    config = StarsConfig(model="stars:embedded-lm", reward=reward_config(tmp_path / "head"))
    config.to_file(tmp_path / "stars.yaml")
    assert StarsConfig.from_file(tmp_path / "stars.yaml").reward == config.reward
    with pytest.raises(ConfigError, match="live object"):
        config.replace(reward=ValueReward(head=head)).to_file(tmp_path / "live.yaml")
    (tmp_path / "head" / "value_head.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelLoadError, match=r"no value head that can be read.*Hint"):
        load_reward(ValueReward(name_or_path=str(tmp_path / "head")), None, backend)


def reward_config(folder: Path) -> ValueReward:
    return ValueReward(name_or_path=str(folder))


@pytest.mark.slow
def test_another_language_model_is_refused(backend: TransformersBackend, tokenizer: object) -> None:
    """Another one in kind, or in weights alone; another dtype is the same one."""
    head = random_head(backend)
    other = TransformersBackend(TransformersModel(model=random_model("llama"), tokenizer=tokenizer))
    with pytest.raises(ModelLoadError, match=r"another language model: .*hidden_size is.*Hint"):
        ValueRewardModel(ValueReward(head=head), other)
    live = {"tokenizer": backend.codec.tokenizer}
    low = copy.deepcopy(backend.model).bfloat16()
    ValueRewardModel(
        ValueReward(head=head), TransformersBackend(TransformersModel(model=low, **live))
    )
    changed = copy.deepcopy(backend.model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape))
    with pytest.raises(ModelLoadError, match=r"hidden states differ by \d+ %"):
        ValueRewardModel(
            ValueReward(head=head), TransformersBackend(TransformersModel(model=changed, **live))
        )


def test_models_without_hidden_states_are_refused_at_start(backend: TransformersBackend) -> None:
    reward = ValueReward(head=random_head(backend))
    model = TabularModel(["a", "b"], lambda ids: (0.5, 0.5))
    with pytest.raises(ModelLoadError, match=r"TabularModel gives none.*Hint"):
        load_reward(reward, None, model)
    with pytest.raises(ModelLoadError, match="no language model gives none"):
        load_reward(reward)
    model.codec = backend.codec
    config = StarsConfig(model="stars:embedded-lm", reward=reward)
    with StarsEngine(config, model=model) as engine, pytest.raises(ModelLoadError, match="Tabular"):
        engine.load()


def test_parts_of_a_composite_read_features(backend: TransformersBackend) -> None:
    heads = [random_head(backend), random_head(backend, "last", hidden=3)]
    parts = {f"head {index}": ValueReward(head=head) for index, head in enumerate(heads)}
    with engine_of(backend, CompositeReward(parts=parts), schedule=NoSchedule()) as engine:
        [result] = engine.generate("This movie", sampling=SAMPLING)
    ids = backend.codec.encode_prompt("This movie")
    for name, head in zip(parts, heads, strict=True):
        [states] = backend.read_states([[*ids, *result.token_ids]], head.layers)
        expected = head.value(head.new_probe()(states[len(ids) - 1 :]).numpy())
        assert result.segments[-1].attempts[-1].parts[name] == pytest.approx(expected, abs=1e-4)


def test_floors_veto(backend: TransformersBackend) -> None:
    reward = ValueReward(head=random_head(backend), floor=1e6)
    with engine_of(backend, reward, on_exhausted="stop") as engine:
        [result] = engine.generate("This movie", sampling=SAMPLING)
    assert result.finish_reason == "rejected"


def test_the_embedded_head_needs_no_other_model() -> None:
    align = AlignParams(
        schedule=ConstantSchedule(value=2.0), beta=0.3, segment_len=8, num_candidates=4
    )
    config = StarsConfig(reward="stars:embedded-value", align=align)
    assert config.reward == ValueReward(name_or_path="stars:embedded-value")
    assert StarsConfig(**yaml.safe_load(text_of(config))) == config
    with StarsEngine(config) as engine:
        [result] = engine.generate("This film", seed=7, max_tokens=32)
        [plain] = engine.vanilla("This film", sampling=SamplingParams(seed=7, max_tokens=32))
    assert result.reward is not None
    assert plain.reward is not None
    assert result.reward > plain.reward


def test_a_head_has_one_source() -> None:
    with pytest.raises(ConfigError, match="either name_or_path"):
        ValueReward()
