"""Token guards: against plain forwards, alone and in batches, cached and whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    Qwen2ForTokenClassification,
    Qwen3Config,
    Qwen3Model,
)

from stars_engine import (
    ConfigError,
    GuardReward,
    ModelLoadError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.rewards.guard import GuardRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.incremental import check, reader_of
from tests.support.rewards import small

LEVELS = {"0": "Safe", "1": "Unsafe", "2": "Controversial"}
CATEGORIES = {"0": "Violent", "1": "PII", "2": "None", "3": "Unethical Acts"}
PROMPT = RewardPrompt("Who wrote this?")
ANSWER = "The first one. Then the other one, said the film."


def guard_weights(hidden: int, inner: int) -> dict[str, torch.Tensor]:
    """As in checkpoints of Qwen3Guard-Stream: two heads, of levels and of categories each."""
    generator = torch.Generator().manual_seed(1)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    weights = {}
    for side in ("", "query_"):
        weights |= {
            f"{side}risk_level_category_pre.weight": matrix(inner, hidden),
            f"{side}risk_level_category_layernorm.weight": torch.rand(inner, generator=generator),
            f"{side}risk_level_head.weight": 4 * matrix(3, inner),
            f"{side}category_head.weight": 4 * matrix(4, inner),
        }
    return weights


@pytest.fixture(scope="module")
def backbone(qwen_tokenizer: PreTrainedTokenizerFast) -> Any:
    return small(Qwen3Model, Qwen3Config, qwen_tokenizer, head_dim=8)


@pytest.fixture(scope="module")
def stream_guard(
    backbone: Any, qwen_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint with the layout and the config of Qwen3Guard-Stream, in small."""
    directory = tmp_path_factory.mktemp("guard")
    backbone.save_pretrained(directory)
    qwen_tokenizer.save_pretrained(directory)
    weights = {f"model.{k}": v for k, v in load_file(directory / "model.safetensors").items()}
    save_file(
        {**weights, **guard_weights(32, 16)},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    values = json.loads((directory / "config.json").read_text())
    values |= {
        "architectures": ["Qwen3ForGuardModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen3.Qwen3Config",
            "AutoModel": "modeling_qwen3_guard.Qwen3ForGuardModel",
        },
        "guard_inner_size": 16,
        "num_risk_level": 3,
        "num_category": 4,
        "response_risk_level_map": LEVELS,
        "response_category_map": CATEGORIES,
        "query_risk_level_map": LEVELS,
        "query_category_map": CATEGORIES,
    }
    (directory / "config.json").write_text(json.dumps(values))
    return directory


@torch.inference_mode()
def plain(backbone: Any, ids: list[int], head: str = "risk_level_head") -> torch.Tensor:
    """Probabilities after each token, as the published code computes them, in one forward pass."""
    weights = guard_weights(32, 16)
    hidden = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0]
    inner = hidden @ weights["risk_level_category_pre.weight"].T
    scale = torch.rsqrt(inner.pow(2).mean(-1, keepdim=True) + backbone.config.rms_norm_eps)
    inner = inner * scale * weights["risk_level_category_layernorm.weight"]
    return (inner @ weights[f"{head}.weight"].T).double().softmax(-1)


def chat_ids(tokenizer: Any, answer: str) -> tuple[list[int], int]:
    """The conversation as the guard reads it, and the length of its beginning."""
    turns = [{"role": "user", "content": PROMPT.text}]
    head = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    start = tokenizer(head)["input_ids"]
    return [*start, *tokenizer(answer, add_special_tokens=False)["input_ids"]], len(start)


def inputs(*answers: str, finished: bool = False) -> list[RewardInput]:
    return [RewardInput(PROMPT, answer, (), finished=finished) for answer in answers]


def guard(directory: Path, **more: Any) -> GuardRewardModel:
    return GuardRewardModel(GuardReward(name_or_path=str(directory), device="cpu", **more))


def test_the_published_layout_without_its_code(
    stream_guard: Path, backbone: Any, qwen_tokenizer: PreTrainedTokenizerFast
) -> None:
    reward = guard(stream_guard)
    assert reward.path == "new tokens only"
    ids, start = chat_ids(qwen_tokenizer, ANSWER)
    expected = plain(backbone, ids)[:, 0]
    [score] = reward.score(inputs(ANSWER))
    assert score.value == pytest.approx(expected[-1].item(), abs=1e-5)
    [finished] = reward.score(inputs(ANSWER, finished=True))
    assert finished.value == score.value
    [each] = reward.token_scores(inputs(ANSWER))
    assert each == pytest.approx(expected[start:].tolist(), abs=1e-5)
    assert len({round(value, 4) for value in each}) > len(each) / 2
    [empty] = reward.score(inputs(""))
    assert empty.value == pytest.approx(expected[start - 1].item(), abs=1e-5)


def test_allowed_labels_categories_and_aggregates(
    stream_guard: Path, backbone: Any, qwen_tokenizer: PreTrainedTokenizerFast
) -> None:
    ids, start = chat_ids(qwen_tokenizer, ANSWER)
    levels, categories = plain(backbone, ids), plain(backbone, ids, "category_head")
    [both] = guard(stream_guard, allowed=("Safe", "Controversial")).score(inputs(ANSWER))
    assert both.value == pytest.approx(1 - levels[-1, 1].item(), abs=1e-5)
    [lowest] = guard(stream_guard, aggregate="min").score(inputs(ANSWER))
    assert lowest.value == pytest.approx(levels[start:, 0].min().item(), abs=1e-5)
    [odds] = guard(stream_guard, output="log_odds").score(inputs(ANSWER))
    assert odds.value == pytest.approx(levels[-1, 0].logit().item(), abs=1e-4)
    head = ("risk_level_category_pre", "risk_level_category_layernorm", "category_head")
    [category] = guard(stream_guard, head=head, allowed=("None",)).score(inputs(ANSWER))
    assert category.value == pytest.approx(categories[-1, 2].item(), abs=1e-5)


def test_scores_do_not_depend_on_batches_or_on_the_cache(stream_guard: Path) -> None:
    reward = guard(stream_guard, aggregate="min")
    answers = [ANSWER[:size] for size in range(0, len(ANSWER), 5)]
    check_reward_model(reward, inputs(*answers))
    rows = [reward._reader.read(item, each_token=True) for item in inputs(*answers)]
    check(reward, rows)
    runner = reader_of(reward)
    longer = replace(inputs(ANSWER)[0], text=ANSWER + " More")
    reward.score([longer])
    read = len(reward._reader.read(longer).ids)
    before = runner.num_computed
    reward.score([replace(longer, text=longer.text + " of it")])
    assert runner.num_computed - before < read / 4


def test_a_head_by_the_names_of_its_layers(
    backbone: Any, qwen_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    backbone.save_pretrained(tmp_path)
    qwen_tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(2)
    layers = {
        "guard.norm": torch.nn.LayerNorm(32),
        "guard.dense": torch.nn.Linear(32, 8),
        "guard.out": torch.nn.Linear(8, 2),
    }
    torch.nn.init.normal_(layers["guard.norm"].bias)
    weights = {
        f"{name}.{key}": value.detach()
        for name, layer in layers.items()
        for key, value in layer.named_parameters()
    }
    save_file(
        {**load_file(tmp_path / "model.safetensors"), **weights},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    head = ("guard.norm", "guard.dense", "gelu", "guard.out")
    config = GuardReward(
        name_or_path=str(tmp_path), device="cpu", head=head, labels=("bad", "ok"), allowed=("ok",)
    )
    [score] = GuardRewardModel(config).score(inputs(ANSWER))
    ids, _ = chat_ids(qwen_tokenizer, ANSWER)
    with torch.inference_mode():
        hidden = backbone(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        inner = layers["guard.dense"](layers["guard.norm"](hidden))
        logits = layers["guard.out"](torch.nn.functional.gelu(inner))
    assert score.value == pytest.approx(logits.softmax(-1)[1].item(), abs=1e-5)
    for changes, said in (
        ({"head": ("guard.out",)}, r"guard\.out takes 8 values, but gets 32"),
        ({"head": ("guard.gone",)}, r"no weights guard\.gone\.weight"),
        ({"head": None}, "has no head that labels tokens"),
        ({"labels": ("bad", "ok", "so")}, r"2 labels, but there are 3 names"),
    ):
        with pytest.raises(ModelLoadError, match=said):
            GuardRewardModel(config.replace(**changes))
    unnamed = config.replace(labels=None)
    with pytest.raises(ModelLoadError, match="allowed='ok' is not a label; the labels are LABEL_0"):
        GuardRewardModel(unnamed)


def test_a_token_classification_model(
    qwen: Qwen2ForTokenClassification, qwen_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    qwen.save_pretrained(tmp_path)
    qwen_tokenizer.save_pretrained(tmp_path)
    fields = {"labels": ("Unsafe", "Safe"), "end_of_turn_on_final": True}
    stored = guard(tmp_path, **fields)
    live = GuardRewardModel(GuardReward(model=qwen, tokenizer=qwen_tokenizer, **fields))
    items = [*inputs(ANSWER, finished=True), *inputs("Hi")]
    values = [[score.value for score in reward.score(items)] for reward in (stored, live)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    ids, _ = chat_ids(qwen_tokenizer, "Hi")
    with torch.inference_mode():
        logits = qwen(input_ids=torch.tensor([ids])).logits[0, -1]
    assert values[0][1] == pytest.approx(logits.softmax(-1)[1].item(), abs=1e-5)


def test_a_model_that_reads_both_ways_is_refused(qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForTokenClassification(
        BertConfig(
            vocab_size=len(qwen_tokenizer), intermediate_size=16, initializer_range=0.5, **sizes
        )
    )
    config = GuardReward(model=bert, tokenizer=qwen_tokenizer, labels=("Safe", "Unsafe"))
    with pytest.raises(ModelLoadError, match=r"is not causal.*FunctionReward"):
        GuardRewardModel(config)


def test_an_engine_with_a_guard_needs_no_calibration(stream_guard: Path) -> None:
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=GuardReward(name_or_path=str(stream_guard), device="cpu"),
        sampling=SamplingParams(max_tokens=24, seed=0),
    )
    assert config.align.on_exhausted == "stop"
    align = config.align.replace(num_candidates=4, segment_len=8)
    with StarsEngine(config.replace(align=align)) as engine:
        [result] = engine.generate("The plot")
    judged = [segment.attempts[-1].reward for segment in result.segments]
    assert all(reward >= 0.5 for reward in judged)
    assert result.finish_reason in ("length", "stop", "rejected")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"allowed": ("Safe", "Unsafe"), "labels": ("Safe", "Unsafe")}, "refuses nothing"),
        ({"labels": ("Unsafe", "Other")}, "allowed='Safe' is not a label"),
        ({"labels": ("Safe", "Safe")}, "has a name twice"),
        ({"head": ("score", "relu")}, "'relu' is an activation"),
    ],
)
def test_what_cannot_judge_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GuardReward(name_or_path="a", **fields)


def test_log_odds_are_allowed_from_zero() -> None:
    reward = GuardReward(name_or_path="a", output="log_odds")
    assert StarsConfig(model="b", reward=reward).align.schedule.value == 0.0
