"""Process reward models as published ones are used, against plain forwards on the full text."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
    Qwen2Model,
)

from stars_engine import ModelLoadError, ProcessReward, StarsWarning
from stars_engine.rewards.heads import build_head
from stars_engine.rewards.process import ProcessRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import Message, RewardInput, RewardPrompt
from tests.reward_parts import (
    CHATML,
    as_chats,
    byte_tokenizer,
    in_steps,
    piece_tokenizer,
    plain_logits,
    small,
)

QWEN_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]


@pytest.fixture(scope="module")
def qwen_tokenizer(borders: list[RewardInput]) -> PreTrainedTokenizerFast:
    texts = [item.text for item in borders]
    return byte_tokenizer(
        texts,
        QWEN_CONTROL,
        template=CHATML,
        bos_token="<|endoftext|>",  # never added by itself
        pad_token="<|endoftext|>",
    )


@pytest.fixture(scope="module")
def qwen(qwen_tokenizer: PreTrainedTokenizerFast) -> Qwen2ForTokenClassification:
    return small(Qwen2ForTokenClassification, Qwen2Config, qwen_tokenizer, num_labels=2)


def non_empty(text: str, separator: str) -> list[str]:
    return [step for step in text.split(separator) if step.strip()] or [""]


# --- the published conventions ---


def test_qwen_math_prm(
    borders: list[RewardInput],
    qwen: Qwen2ForTokenClassification,
    qwen_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A marker after each step of the assistant's turn; the probability of label 1 there."""
    config = ProcessReward(model=qwen, tokenizer=qwen_tokenizer, convention="qwen2.5-math-prm")
    reward = ProcessRewardModel(config)
    items = list(as_chats(in_steps(borders, "\n\n")))
    check_reward_model(reward, items[::7])
    marker = qwen_tokenizer.convert_tokens_to_ids("<extra_0>")
    for item, found in zip(items, reward.step_scores(items), strict=True):
        answer = "<extra_0>".join(non_empty(item.text, "\n\n")) + "<extra_0>"
        turns = [{"role": m.role, "content": m.content} for m in item.prompt.messages]
        turns.append({"role": "assistant", "content": answer})
        text = qwen_tokenizer.apply_chat_template(turns, tokenize=False)
        ids = qwen_tokenizer(text)["input_ids"]
        at = [index for index, token in enumerate(ids) if token == marker]
        plain = plain_logits(qwen, ids).softmax(-1)[at, 1]
        assert found == pytest.approx(plain.tolist(), abs=1e-4)
    assert max(len(non_empty(item.text, "\n\n")) for item in items) >= 5


def test_math_shepherd(borders: list[RewardInput]) -> None:
    """A tag after each line, and how likely a causal model goes on with + rather than -."""
    texts = [item.text for item in borders] + ["Step: a ки\nStep: b + - ки\n"] * 50
    tokenizer = piece_tokenizer(texts, ["<unk>", "<s>"], bos_token="<s>", pad_token="<unk>")
    model = small(MistralForCausalLM, MistralConfig, tokenizer, num_key_value_heads=2)
    config = ProcessReward(model=model, tokenizer=tokenizer, convention="math-shepherd")
    reward = ProcessRewardModel(config)
    items = in_steps(borders, "\n")
    check_reward_model(reward, items[::7])
    tag = tokenizer.encode("ки")[-1]
    plus, minus = (tokenizer.encode(sign)[-1] for sign in ("+", "-"))
    for item, found in zip(items, reward.step_scores(items), strict=True):
        tagged = "\n".join(f"{step} ки" for step in non_empty(item.text, "\n"))
        ids = tokenizer(f"{item.prompt.text} {tagged}")["input_ids"]
        at = [index for index, token in enumerate(ids) if token == tag]
        plain = plain_logits(model, ids)[at][:, [plus, minus]].softmax(-1)[:, 0]
        assert found == pytest.approx(plain.tolist(), abs=1e-4)


def save_with_head(
    directory: Path, backbone: Any, tokenizer: Any, head: dict[str, torch.Tensor]
) -> None:
    """Write a checkpoint as Skywork's and Qwen's are: a head among the weights, no class for it."""
    backbone.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    save_file({**weights, **head}, directory / "model.safetensors", metadata={"format": "pt"})


def random_head(*shapes: tuple[str, int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    head = {}
    for name, rows, columns in shapes:
        head[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        head[f"{name}.bias"] = torch.randn(rows, generator=generator)
    return head


def test_skywork_prm(
    borders: list[RewardInput], qwen_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A value head at the newline after each step; TRL puts it among a language model's weights."""
    model = small(Qwen2ForCausalLM, Qwen2Config, qwen_tokenizer)
    head = random_head(("v_head.summary", 1, 32))
    save_with_head(tmp_path, model, qwen_tokenizer, head)
    reward = ProcessRewardModel(
        ProcessReward(name_or_path=str(tmp_path), convention="skywork-prm", device="cpu")
    )
    items = in_steps(borders, "\n")
    check_reward_model(reward, items[::7])
    newline = qwen_tokenizer.encode("\n")[-1]
    for item, found in zip(items, reward.step_scores(items), strict=True):
        ids = qwen_tokenizer.encode(f"<|endoftext|>{item.prompt.text}\n")
        at = []
        for step in non_empty(item.text, "\n"):
            ids += [*qwen_tokenizer.encode(step), newline]
            at.append(len(ids) - 1)
        with torch.inference_mode():
            hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, at]
            plain = hidden @ head["v_head.summary.weight"].T + head["v_head.summary.bias"]
        assert found == pytest.approx(plain.squeeze(-1).sigmoid().tolist(), abs=1e-4)


# --- heads ---


def score_of(reward: ProcessRewardModel, text: str = "One. Two", **more: Any) -> float:
    [score] = reward.score([RewardInput(RewardPrompt("Why?"), text, (), **more)])
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


def test_a_value_head_beside_a_model_in_memory(qwen_tokenizer: PreTrainedTokenizerFast) -> None:
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
    with pytest.raises(ModelLoadError, match=r"no labels for each token.*head='tokens'"):
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
def test_heads_of_other_forms_are_refused(shapes: Sequence[tuple[str, int, int]]) -> None:
    with pytest.raises(ModelLoadError, match="trust_remote_code=True"):
        build_head(random_head(*shapes), "a/model")


# --- steps ---


@pytest.fixture(scope="module")
def by_line(
    qwen: Qwen2ForTokenClassification, qwen_tokenizer: PreTrainedTokenizerFast
) -> ProcessReward:
    return ProcessReward(
        model=qwen,
        tokenizer=qwen_tokenizer,
        convention="qwen2.5-math-prm",
        step_separator="\n",
    )


def test_steps_of_partial_and_finished_answers(by_line: ProcessReward) -> None:
    every = ProcessRewardModel(by_line)
    ended = ProcessRewardModel(by_line.replace(score_unfinished=False))

    def steps(reward: ProcessRewardModel, text: str, *, finished: bool = False) -> list[str]:
        return reward.steps(RewardInput(RewardPrompt("?"), text, (), finished))

    assert steps(every, "a\nb") == steps(every, "a\n\nb\n") == ["a", "b"]
    assert steps(ended, "a\nb") == ["a"]
    assert steps(ended, "a\nb\n") == steps(ended, "a\nb", finished=True) == ["a", "b"]
    assert steps(every, "") == steps(ended, "a") == steps(every, " \n\n ") == []
    # An answer without a step is scored as a beginning, whatever does not count yet.
    assert score_of(ended, "a") == score_of(every, "") == score_of(ended, "")


def test_aggregates(by_line: ProcessReward) -> None:
    item = RewardInput(RewardPrompt("Why?"), "One\nTwo words\nThree", ())
    [steps] = ProcessRewardModel(by_line).step_scores([item])
    assert len(set(steps)) == 3
    expected = {
        "last": steps[2],
        "min": min(steps),
        "mean": sum(steps) / 3,
        "product": math.prod(steps),
    }
    for aggregate, value in expected.items():
        [score] = ProcessRewardModel(by_line.replace(aggregate=aggregate)).score([item])
        assert score.value == pytest.approx(value, abs=1e-9)


def test_markers_in_the_text_are_text(by_line: ProcessReward) -> None:
    reward = ProcessRewardModel(by_line)
    prompt = RewardPrompt("<extra_0>?", messages=(Message(role="user", content="<extra_0>?"),))
    item = RewardInput(prompt, "One<extra_0>\n<extra_0>Two", ())
    [steps] = reward.step_scores([item])
    assert len(steps) == 2
    row = reward._read(item)
    marker = reward._marker
    assert [index for index, token in enumerate(row.ids) if token == marker] == list(row.marks)


def test_a_tag_within_the_text_is_no_marker(borders: list[RewardInput]) -> None:
    """Tags that are ordinary text are told apart by where they were put."""
    tokenizer = piece_tokenizer(
        ["a ки\n + -"] * 20, ["<unk>", "<s>"], bos_token="<s>", pad_token="<unk>"
    )
    model = small(LlamaForCausalLM, LlamaConfig, tokenizer)
    config = ProcessReward(model=model, tokenizer=tokenizer, convention="math-shepherd")
    [steps] = ProcessRewardModel(config).step_scores(
        [RewardInput(RewardPrompt("?"), "a ки a\na ки", ())]
    )
    assert len(steps) == 2


def test_long_prompts_are_cut_and_markers_stay_in_place(
    qwen_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = small(
        Qwen2ForTokenClassification,
        Qwen2Config,
        qwen_tokenizer,
        num_labels=2,
        max_position_embeddings=48,
    )
    reward = ProcessRewardModel(
        ProcessReward(model=model, tokenizer=qwen_tokenizer, convention="qwen2.5-math-prm")
    )
    item = RewardInput(RewardPrompt("a film " * 100), "One\n\nTwo", ())
    with pytest.warns(StarsWarning, match="48 tokens"):
        row = reward._read(item)
    assert row.truncated
    assert len(row.ids) <= 48
    assert [row.ids[place] for place in row.marks] == [reward._marker] * 2
    assert reward.score([item])[0].truncated


@pytest.mark.parametrize("field", ["marker", "positive"])
def test_several_tokens_are_no_marker(field: str, qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    model = small(Qwen2ForCausalLM, Qwen2Config, qwen_tokenizer)
    own = {"marker": "<extra_0>", "positive": "+", field: "several tokens, no doubt"}
    config = ProcessReward(
        model=model,
        tokenizer=qwen_tokenizer,
        step_separator="\n",
        head="tokens",
        negative="-",
        **own,
    )
    with pytest.raises(ModelLoadError, match=f"{field}='several tokens.*not one token"):
        ProcessRewardModel(config)


def test_floors_veto(by_line: ProcessReward) -> None:
    item = RewardInput(RewardPrompt("Why?"), "One", ())
    [low] = ProcessRewardModel(by_line.replace(floor=1.1)).score([item])
    [high] = ProcessRewardModel(by_line.replace(floor=-0.1)).score([replace(item)])
    assert (low.vetoed, high.vetoed) == (True, False)
