"""Published process reward models, against plain forwards over the full text."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
)

from stars_engine import ModelLoadError, ProcessReward, StarsWarning
from stars_engine.messages import Message
from stars_engine.rewards.process import ProcessRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.rewards import (
    as_chats,
    in_steps,
    piece_tokenizer,
    plain_logits,
    random_head,
    save_with_head,
    small,
)


def non_empty(text: str, separator: str) -> list[str]:
    return [step for step in text.split(separator) if step.strip()] or [""]


# --- the published conventions ---


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# --- steps ---


def score_of(reward: ProcessRewardModel, text: str = "One. Two", **more: Any) -> float:
    [score] = reward.score([RewardInput(RewardPrompt("Why?"), text, (), **more)])
    return score.value


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_markers_in_the_text_stay_text(by_line: ProcessReward) -> None:
    reward = ProcessRewardModel(by_line)
    prompt = RewardPrompt("<extra_0>?", messages=(Message(role="user", content="<extra_0>?"),))
    item = RewardInput(prompt, "One<extra_0>\n<extra_0>Two", ())
    [steps] = reward.step_scores([item])
    assert len(steps) == 2
    row = reward._reader.read(item)
    marker = reward._marker
    assert [index for index, token in enumerate(row.ids) if token == marker] == list(row.marks)


def test_a_tag_within_the_text_is_not_a_marker(borders: list[RewardInput]) -> None:
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


def test_long_prompts_are_truncated_and_markers_keep_their_positions(
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
        row = reward._reader.read(item)
    assert row.truncated
    assert len(row.ids) <= 48
    assert [row.ids[place] for place in row.marks] == [reward._marker] * 2
    assert reward.score([item])[0].truncated


@pytest.mark.parametrize("field", ["marker", "positive"])
def test_a_marker_must_be_one_token(field: str, qwen_tokenizer: PreTrainedTokenizerFast) -> None:
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
    with pytest.raises(ModelLoadError, match=f"{field}='several tokens.*it must be one"):
        ProcessRewardModel(config)


def test_floors_veto(by_line: ProcessReward) -> None:
    item = RewardInput(RewardPrompt("Why?"), "One", ())
    [low] = ProcessRewardModel(by_line.replace(floor=1.1)).score([item])
    [high] = ProcessRewardModel(by_line.replace(floor=-0.1)).score([replace(item)])
    assert (low.vetoed, high.vetoed) == (True, False)
