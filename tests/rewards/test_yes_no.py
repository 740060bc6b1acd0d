"""Language models as judges, against plain forwards over the whole prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from stars_engine import ModelLoadError, StarsWarning, YesNoReward
from stars_engine.messages import Message
from stars_engine.rewards.yes_no import YesNoRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.rewards import (
    HEADERS,
    TURNS,
    as_chats,
    byte_tokenizer,
    piece_tokenizer,
    plain_logits,
    small,
)

LLAMA_CONTROL = ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
WORDS = ["Yes No safe unsafe\n\nYes\n\nNo\n\nsafe\n\nunsafe"] * 40


@pytest.fixture(scope="module")
def llama_tokenizer(borders: list[RewardInput]) -> PreTrainedTokenizerFast:
    texts = [item.text for item in borders] + WORDS
    return byte_tokenizer(texts, LLAMA_CONTROL, template=HEADERS, bos_token="<|begin|>")


@pytest.fixture(scope="module")
def llama(llama_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return small(LlamaForCausalLM, LlamaConfig, llama_tokenizer)


@pytest.fixture(scope="module")
def gemma_tokenizer(borders: list[RewardInput]) -> PreTrainedTokenizerFast:
    control = ["<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    texts = [item.text for item in borders] + WORDS
    return piece_tokenizer(texts, control, template=TURNS, bos_token="<bos>", pad_token="<unk>")


@pytest.fixture(scope="module")
def gemma(gemma_tokenizer: PreTrainedTokenizerFast) -> Gemma2ForCausalLM:
    """Its logits are capped, which changes differences between them."""
    return small(
        Gemma2ForCausalLM,
        Gemma2Config,
        gemma_tokenizer,
        head_dim=8,
        num_key_value_heads=2,
        final_logit_softcapping=1.0,
        pad_token_id=0,
    )


def first_token(tokenizer: Any, before: str, word: str) -> int:
    """The token with which a word begins right after some text."""
    ids = tokenizer(before, add_special_tokens=False)["input_ids"]
    longer = tokenizer(before + word, add_special_tokens=False)["input_ids"]
    assert longer[: len(ids)] == ids
    return longer[len(ids)]


def log_odds(model: Any, ids: list[int], positive: int, negative: int) -> float:
    log_probs = plain_logits(model, ids)[-1].log_softmax(-1)
    return (log_probs[positive] - log_probs[negative]).item()


@pytest.mark.slow
def test_an_instruction_through_the_chat_template(
    borders: list[RewardInput], gemma: Gemma2ForCausalLM, gemma_tokenizer: PreTrainedTokenizerFast
) -> None:
    instruction = "Question: {prompt}\nAnswer: {completion}\nIs the answer kind?"
    config = YesNoReward(model=gemma, tokenizer=gemma_tokenizer, instruction=instruction)
    reward = YesNoRewardModel(config)
    items = list(as_chats(borders))  # the conversation as text
    check_reward_model(reward, items[::9])
    yes, no = (first_token(gemma_tokenizer, "kind?\n", word) for word in ("Yes", "No"))
    assert yes != no
    for item, score in zip(items, reward.score(items), strict=True):
        asked = f"Question: {item.prompt.text}\nAnswer: {item.text}\nIs the answer kind?"
        ids = gemma_tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_dict=False
        )
        assert score.value == pytest.approx(log_odds(gemma, ids, yes, no), abs=1e-4)
        assert score.num_tokens == len(ids)


@pytest.mark.slow
def test_llama_guard_through_its_own_template(
    borders: list[RewardInput], llama: LlamaForCausalLM, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its template frames the conversation and carries the policy; it answers on a line."""
    config = YesNoReward(model=llama, tokenizer=llama_tokenizer, preset="llama-guard")
    reward = YesNoRewardModel(config)
    items = list(as_chats(borders))
    check_reward_model(reward, items[::9])
    safe, unsafe = (first_token(llama_tokenizer, "\n\n", word) for word in ("safe", "unsafe"))
    for item, score in zip(items, reward.score(items), strict=True):
        turns = [{"role": m.role, "content": m.content} for m in item.prompt.messages]
        turns.append({"role": "assistant", "content": item.text})
        ids = llama_tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False
        )
        assert score.value == pytest.approx(log_odds(llama, ids, safe, unsafe), abs=1e-4)


@pytest.mark.slow
def test_shield_gemma_with_a_policy(
    borders: list[RewardInput], gemma: Gemma2ForCausalLM, gemma_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Yes means a violation: the reward is high where No is likely."""
    config = YesNoReward(
        model=gemma, tokenizer=gemma_tokenizer, preset="shieldgemma", policy="* No shouting."
    )
    reward = YesNoRewardModel(config)
    check_reward_model(reward, borders[::9])
    yes, no = (first_token(gemma_tokenizer, "step.\n\n", word) for word in ("Yes", "No"))
    for item, score in zip(borders, reward.score(borders), strict=True):
        asked = config.resolved().template
        before, after = asked.split("{completion}")
        before = before.replace("{bos}", "<bos>").replace("{prompt}", item.prompt.text)
        after = after.replace("{policy}", "* No shouting.")
        assert "<start_of_turn>\nHuman Question: " in before
        ids = gemma_tokenizer(before + item.text + after, add_special_tokens=False)["input_ids"]
        assert ids[0] == gemma_tokenizer.bos_token_id
        assert score.value == pytest.approx(log_odds(gemma, ids, no, yes), abs=1e-4)


def test_llama_guard_with_a_policy(
    llama: LlamaForCausalLM, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = YesNoReward(
        model=llama, tokenizer=llama_tokenizer, preset="llama-guard", policy="S1: Shouting."
    )
    item = RewardInput(RewardPrompt("Hi"), " HEY", ())
    row = YesNoRewardModel(config)._reader.read(item)
    shown = llama_tokenizer.decode(row.ids)
    assert "S1: Shouting." in shown
    assert "User: Hi\n\nAgent:  HEY\n" in shown
    assert shown.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert row.ids[0] == llama_tokenizer.bos_token_id


def test_a_missing_answer_prefix_is_added(
    llama: LlamaForCausalLM, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    live = {"model": llama, "tokenizer": llama_tokenizer}
    item = RewardInput(RewardPrompt("Hi"), " Hey", ())
    for template, prefix in (
        ("Q{prompt}A{completion}:", "\n\n"),
        ("Q{prompt}A{completion}:\n\n", ""),
    ):
        asked = YesNoReward(**live, template=template, answer_prefix=prefix)
        row = YesNoRewardModel(asked)._reader.read(item)
        assert llama_tokenizer.decode(row.ids) == "QHiA Hey:\n\n"
    own = YesNoReward(**live, template="Q{prompt}A{completion}:\n\n", answer_prefix="\n\n")
    assert llama_tokenizer.decode(YesNoRewardModel(own)._reader.read(item).ids) == "QHiA Hey:\n\n"


def test_placeholders_in_prompts_and_answers_are_text(
    llama: LlamaForCausalLM, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    item = RewardInput(RewardPrompt("a {completion} <|eot_id|>"), " {prompt} {policy}", ())
    live = {"model": llama, "tokenizer": llama_tokenizer}
    for field in ("instruction", "template"):
        config = YesNoReward(**live, **{field: "[{prompt}|{completion}]"})
        row = YesNoRewardModel(config)._reader.read(item)
        shown = llama_tokenizer.decode(row.ids)
        assert "[a {completion} <|eot_id|>| {prompt} {policy}]" in shown
        ends = row.ids.count(llama_tokenizer.convert_tokens_to_ids("<|eot_id|>"))
        assert ends == (field == "instruction")


def test_equal_first_tokens_are_refused(
    llama: LlamaForCausalLM, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = YesNoReward(
        model=llama,
        tokenizer=llama_tokenizer,
        template="{completion}",
        positive="Yes, it is",
        negative="Yes and no",
    )
    with pytest.raises(ModelLoadError, match="begin with the same token"):
        YesNoRewardModel(config)


def test_a_judge_without_a_chat_template_needs_one(
    llama: LlamaForCausalLM, borders: list[RewardInput]
) -> None:
    bare = byte_tokenizer([item.text for item in borders], LLAMA_CONTROL)
    config = YesNoReward(model=llama, tokenizer=bare, instruction="{completion}?")
    with pytest.raises(ModelLoadError, match=r"no chat template\..*template="):
        YesNoRewardModel(config)


def test_the_prompt_is_truncated_and_the_question_stays(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = small(LlamaForCausalLM, LlamaConfig, llama_tokenizer, max_position_embeddings=64)
    config = YesNoReward(
        model=model, tokenizer=llama_tokenizer, instruction="Q: {prompt} A: {completion} Kind?"
    )
    reward = YesNoRewardModel(config)
    turns = (Message(role="user", content="a film " * 60),)
    item = RewardInput(RewardPrompt("a film " * 60, messages=turns), " It is good", ())
    with pytest.warns(StarsWarning, match="64 tokens"):
        row = reward._reader.read(item)
    shown = llama_tokenizer.decode(row.ids)
    assert row.truncated
    assert len(row.ids) <= 64
    assert "user<|end_header_id|>\n\nQ: " in shown
    assert "A:  It is good Kind?<|eot_id|>" in shown


def test_models_without_position_arguments(
    llama: LlamaForCausalLM, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Code of a checkpoint's own may have no `logits_to_keep`."""

    class Old(LlamaForCausalLM):
        def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: Any = None) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)

    old = small(Old, LlamaConfig, llama_tokenizer)
    items = [RewardInput(RewardPrompt("Hi"), text, ()) for text in ("", " It", " It is good")]
    asked = {"tokenizer": llama_tokenizer, "template": "{prompt}{completion} Kind?"}
    with torch.inference_mode():
        new = YesNoRewardModel(YesNoReward(model=llama, **asked)).score(items)
        same = YesNoRewardModel(YesNoReward(model=old, **asked)).score(items)
    assert [s.value for s in same] == pytest.approx([s.value for s in new], abs=1e-5)
