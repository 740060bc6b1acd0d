"""Value heads of transformers, of TRL, and of checkpoints with custom code."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

from stars_engine import ModelLoadError, ProcessReward
from stars_engine.rewards.process import ProcessRewardModel
from stars_engine.rewards.token_heads import build_head
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.rewards import random_head, save_with_head, small


def score_of(reward: ProcessRewardModel) -> float:
    [score] = reward.score([RewardInput(RewardPrompt("Why?"), "One. Two", ())])
    return score.value


def hidden_at_marker(model: Any, tokenizer: Any) -> torch.Tensor:
    turns = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "One. Two<extra_0>"},
    ]
    ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False))["input_ids"]
    at = ids.index(tokenizer.convert_tokens_to_ids("<extra_0>"))
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0, at]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_head_of_two_layers_without_remote_code(
    *, sharded: bool, qwen_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As Qwen2.5-Math-PRM's: `score` of two linear layers with ReLU between them."""
    backbone = small(Qwen2Model, Qwen2Config, qwen_tokenizer)
    head = random_head(("score.0", 32, 32), ("score.2", 2, 32))
    if sharded:
        backbone.save_pretrained(tmp_path, max_shard_size="40KB")
        qwen_tokenizer.save_pretrained(tmp_path)
        save_file(head, tmp_path / "head.safetensors", metadata={"format": "pt"})
        index_file = tmp_path / "model.safetensors.index.json"
        index = json.loads(index_file.read_text())
        index["weight_map"] |= dict.fromkeys(head, "head.safetensors")
        index_file.write_text(json.dumps(index))
    else:
        save_with_head(tmp_path, backbone, qwen_tokenizer, head)
    config_file = tmp_path / "config.json"
    values = json.loads(config_file.read_text())
    values["architectures"] = ["Qwen2ForProcessRewardModel"]
    values["auto_map"] = {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    config_file.write_text(json.dumps(values))
    reward = ProcessRewardModel(
        ProcessReward(name_or_path=str(tmp_path), convention="qwen2.5-math-prm", device="cpu")
    )
    hidden = hidden_at_marker(backbone, qwen_tokenizer)
    inner = (hidden @ head["score.0.weight"].T + head["score.0.bias"]).relu()
    plain = inner @ head["score.2.weight"].T + head["score.2.bias"]
    assert score_of(reward) == pytest.approx(plain.softmax(-1)[1].item(), abs=1e-5)


REMOTE_CODE = """
import torch
from transformers import Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput


class TwoHeads(Qwen2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.left = torch.nn.Linear(config.hidden_size, 2)
        self.right = torch.nn.Linear(config.hidden_size, 2)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def forward(self, input_ids, attention_mask=None):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return TokenClassifierOutput(logits=self.left(hidden) - self.right(hidden))
"""


def test_code_of_the_checkpoint_runs_only_where_the_config_says_so(
    qwen_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # transformers appends the folder
    directory = tmp_path / "checkpoint"
    backbone = small(Qwen2Model, Qwen2Config, qwen_tokenizer)
    backbone.save_pretrained(directory)
    qwen_tokenizer.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    head = random_head(("left", 2, 32), ("right", 2, 32))
    weights = {f"model.{name}": value for name, value in weights.items()} | head
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "modeling_two_heads.py").write_text(REMOTE_CODE)
    values = json.loads((directory / "config.json").read_text())
    values |= {"architectures": ["TwoHeads"], "num_labels": 2}
    values["auto_map"] = {"AutoModel": "modeling_two_heads.TwoHeads"}
    (directory / "config.json").write_text(json.dumps(values))
    config = ProcessReward(name_or_path=str(directory), convention="qwen2.5-math-prm", device="cpu")
    with pytest.raises(ModelLoadError, match=r"found: none.*trust_remote_code=True"):
        ProcessRewardModel(config)
    reward = ProcessRewardModel(config.replace(trust_remote_code=True))
    hidden = hidden_at_marker(backbone, qwen_tokenizer)
    left, right = (hidden @ head[f"{n}.weight"].T + head[f"{n}.bias"] for n in ("left", "right"))
    plain = (left - right).softmax(-1)[1].item()
    assert score_of(reward) == pytest.approx(plain, abs=1e-5)


def test_a_transformers_class_with_a_head(
    qwen: Qwen2ForTokenClassification, qwen_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    qwen.save_pretrained(tmp_path)
    qwen_tokenizer.save_pretrained(tmp_path)
    stored = ProcessReward(name_or_path=str(tmp_path), convention="qwen2.5-math-prm", device="cpu")
    live = ProcessReward(model=qwen, tokenizer=qwen_tokenizer, convention="qwen2.5-math-prm")
    values = [score_of(ProcessRewardModel(config)) for config in (stored, live)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    other = live.replace(label="LABEL_0")
    assert score_of(ProcessRewardModel(other)) == pytest.approx(1 - values[1], abs=1e-6)


def test_a_value_head_with_a_model_in_memory(qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    """As TRL's wrapper of a causal language model."""

    class ValueHead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.summary = torch.nn.Linear(32, 1)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return self.summary(hidden)

    model = small(Qwen2ForCausalLM, Qwen2Config, qwen_tokenizer)
    model.v_head = ValueHead()
    reward = ProcessRewardModel(
        ProcessReward(
            model=model,
            tokenizer=qwen_tokenizer,
            step_separator="\n",
            marker="<extra_0>",
            head="classifier",
        )
    )
    hidden = hidden_at_marker(model.model, qwen_tokenizer)
    with torch.inference_mode():
        plain = model.v_head(hidden).sigmoid().item()
    assert score_of(reward) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("model_class", [Qwen2Model, Qwen2ForSequenceClassification])
def test_a_model_without_labels_for_tokens_is_refused(
    model_class: Any, qwen_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = small(model_class, Qwen2Config, qwen_tokenizer, num_labels=2)
    config = ProcessReward(model=model, tokenizer=qwen_tokenizer, convention="qwen2.5-math-prm")
    with pytest.raises(
        ModelLoadError, match=r"does not return labels for each token.*head='tokens'"
    ):
        ProcessRewardModel(config)


def test_a_checkpoint_without_a_head_is_refused(
    qwen_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    small(Qwen2Model, Qwen2Config, qwen_tokenizer).save_pretrained(tmp_path)
    qwen_tokenizer.save_pretrained(tmp_path)
    config = ProcessReward(name_or_path=str(tmp_path), convention="skywork-prm", device="cpu")
    with pytest.raises(ModelLoadError, match=r"no head that scores tokens.*found: none"):
        ProcessRewardModel(config)


@pytest.mark.parametrize(
    "shapes",
    [
        [("norm", 4, 4), ("dense", 2, 4)],
        [("0", 8, 4), ("2", 2, 6)],
    ],
)
def test_heads_of_unknown_shapes_are_refused(shapes: Sequence[tuple[str, int, int]]) -> None:
    with pytest.raises(ModelLoadError, match="trust_remote_code=True"):
        build_head(random_head(*shapes), "a/model")
