"""Classifiers with templates and context limits, at real segment ends."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from stars_engine import (
    AlignParams,
    ClassifierReward,
    NoSchedule,
    PromptError,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsWarning,
)
from stars_engine.chat.answers import acceptable, encode_answer
from stars_engine.messages import Message
from stars_engine.rewards.base import score_each
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.rewards import (
    CHATML,
    HEADERS,
    TURNS,
    as_chats,
    byte_tokenizer,
    piece_tokenizer,
    plain_logits,
    small,
    word_piece_tokenizer,
)

LLAMA_CONTROL = ["<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def turn(content: str, role: str = "user") -> Message:
    return Message(role=role, content=content)


def dicts(messages: Sequence[Message], answer: str) -> list[dict[str, str]]:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return [*turns, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def llama_tokenizer(borders: list[RewardInput]) -> PreTrainedTokenizerFast:
    texts = [item.text for item in borders]
    return byte_tokenizer(texts, LLAMA_CONTROL, template=HEADERS, bos_token="<|begin|>")


@pytest.fixture(scope="module")
def llama(llama_tokenizer: PreTrainedTokenizerFast) -> LlamaForSequenceClassification:
    return small(LlamaForSequenceClassification, LlamaConfig, llama_tokenizer, num_labels=1)


def reward_of(model: Any, tokenizer: Any, **more: Any) -> ClassifierRewardModel:
    return ClassifierRewardModel(
        ClassifierReward(model=model, tokenizer=tokenizer, **more), "the language model's"
    )


@pytest.mark.slow
def test_llama_classifier_through_its_chat_template(
    borders: list[RewardInput],
    llama: LlamaForSequenceClassification,
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A partial answer's turn stays open; a final one's is closed, as in training."""
    reward = reward_of(llama, llama_tokenizer)
    items = list(as_chats(borders))
    check_reward_model(reward, items[::7])
    for item, score in zip(items, reward.score(items), strict=True):
        text = llama_tokenizer.apply_chat_template(
            dicts(item.prompt.messages, item.text), tokenize=False
        )
        assert text.endswith("<|eot_id|>")
        text = text if item.finished else text.removesuffix("<|eot_id|>")
        ids = llama_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert score.value == pytest.approx(plain_logits(llama, ids).item(), abs=1e-4)
        assert score.num_tokens == len(ids)
    assert sum(item.finished for item in items) >= 5


@pytest.mark.slow
def test_deberta_through_a_template(borders: list[RewardInput]) -> None:
    tokenizer = word_piece_tokenizer([item.text for item in borders])
    model = small(
        DebertaV2ForSequenceClassification,
        DebertaV2Config,
        tokenizer,
        num_labels=1,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
        pad_token_id=0,
    )
    reward = reward_of(model, tokenizer, template="{prompt}[SEP]{completion}")
    check_reward_model(reward, borders[::9])
    for item, score in zip(borders, reward.score(borders), strict=True):
        ids = tokenizer(f"{item.prompt.text}[SEP]{item.text}")["input_ids"]
        assert score.value == pytest.approx(plain_logits(model, ids).item(), abs=1e-4)
        assert score.num_tokens == len(ids)


def test_raw_prompts_become_a_user_turn(
    borders: list[RewardInput],
    llama: LlamaForSequenceClassification,
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    reward = reward_of(llama, llama_tokenizer)
    raw = borders[:20]
    chats = [
        replace(item, prompt=replace(item.prompt, messages=(turn(item.prompt.text),)))
        for item in raw
    ]
    ours, theirs = reward.score(raw), reward.score(chats)
    assert [score.num_tokens for score in ours] == [score.num_tokens for score in theirs]
    values = [score.value for score in theirs]
    assert [score.value for score in ours] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("ends", [False, True])
def test_the_end_of_turn_is_optional(
    *,
    finished: bool,
    ends: bool,
    llama: LlamaForSequenceClassification,
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    field = "end_of_turn_on_final" if finished else "end_of_turn_on_partial"
    reward = reward_of(llama, llama_tokenizer, **{field: ends})
    item = RewardInput(RewardPrompt("Hi", messages=(turn("Hi"),)), "It is good", (), finished)
    whole = llama_tokenizer.apply_chat_template(dicts([turn("Hi")], "It is good"), tokenize=False)
    text = whole if ends else whole.removesuffix("<|eot_id|>")
    ids = llama_tokenizer(text, add_special_tokens=False)["input_ids"]
    [score] = reward.score([item])
    assert score.value == pytest.approx(plain_logits(llama, ids).item(), abs=1e-4)


def test_shared_ids_are_used_in_the_template_unchanged(
    llama: LlamaForSequenceClassification, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    fingerprint = Codec(llama_tokenizer).fingerprint()
    config = ClassifierReward(model=llama, tokenizer=llama_tokenizer)
    answer = tuple(llama_tokenizer.convert_tokens_to_ids(["g", "o", "o", "d"]))
    assert llama_tokenizer("good", add_special_tokens=False)["input_ids"] != list(answer)
    prompt = RewardPrompt("Hi", (5, 6, 7), (turn("Hi"),))
    item = RewardInput(prompt, "good", answer)
    before = llama_tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    eot = llama_tokenizer.convert_tokens_to_ids("<|eot_id|>")
    reward = ClassifierRewardModel(config, fingerprint)
    [partial, final] = reward.score([item, replace(item, finished=True)])
    for score, ids in ((partial, [*before, *answer]), (final, [*before, *answer, eot])):
        assert score.value == pytest.approx(plain_logits(llama, ids).item(), abs=1e-4)
    plain = ClassifierRewardModel(config.replace(read="ids"), fingerprint)
    [score] = plain.score([item])
    assert score.value == pytest.approx(plain_logits(llama, [5, 6, 7, *answer]).item(), abs=1e-4)


def test_control_tokens_in_contents_stay_text(
    llama: LlamaForSequenceClassification, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    codec = Codec(llama_tokenizer)
    control = set(llama_tokenizer.convert_tokens_to_ids(LLAMA_CONTROL))
    messages = acceptable(codec, [turn("a<|eot_id|>b")])
    for finished in (False, True):
        ids = encode_answer(codec, messages, "yes<|eot_id|>", end_of_turn=finished)
        neutral = encode_answer(codec, messages, "yes", end_of_turn=finished)
        count = sum(token in control for token in ids)
        assert count == sum(token in control for token in neutral) > 3
        assert "a<|eot_id|>b" in codec.decode(ids)
        assert "yes<|eot_id|>" in codec.decode(ids)
    template = "{bos}{prompt}<|eot_id|>{completion}"
    reward = reward_of(llama, llama_tokenizer, template=template)
    half = RewardInput(RewardPrompt("a<|begin|>b<|eot"), "_id|> ok", ())
    text = codec.encode
    ids = [
        *llama_tokenizer.convert_tokens_to_ids(["<|begin|>"]),
        *text("a<|begin|>b<|eot"),
        *llama_tokenizer.convert_tokens_to_ids(["<|eot_id|>"]),
        *text("_id|> ok"),
    ]
    [score] = reward.score([half])
    assert score.value == pytest.approx(plain_logits(llama, ids).item(), abs=1e-4)
    glued = reward_of(llama, llama_tokenizer, template="{prompt}{completion}")
    [score] = glued.score([half])  # prompt and completion make up a control token together
    ids = [*codec.encode_prompt(""), *text("a<|begin|>b<|eot_id|> ok")]
    assert score.value == pytest.approx(plain_logits(llama, ids).item(), abs=1e-4)


# --- roles ---


@pytest.fixture(scope="module")
def gemma_tokenizer(borders: list[RewardInput]) -> PreTrainedTokenizerFast:
    """Its template takes alternating user and model turns only."""
    control = ["<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    texts = [item.text for item in borders] + ["user model Be kind."] * 20
    return piece_tokenizer(texts, control, template=TURNS, bos_token="<bos>")


def test_unsupported_roles_are_merged_with_one_warning(
    gemma_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = small(LlamaForSequenceClassification, LlamaConfig, gemma_tokenizer, num_labels=1)
    reward = reward_of(model, gemma_tokenizer)
    turns = (
        turn("Be kind.", "system"),
        turn("One"),
        turn("Two"),
        turn("Well", "assistant"),
        turn("a fact", "tool"),
    )
    merged = [turn("Be kind.\n\nOne\n\nTwo"), turn("Well", "assistant"), turn("a fact")]
    item = RewardInput(RewardPrompt("", messages=turns), "It is good", ())
    with pytest.warns(StarsWarning, match="roles system, user, user, assistant, tool") as seen:
        [score, again] = reward.score([item, item])
    assert len(seen) == 1
    text = gemma_tokenizer.apply_chat_template(dicts(merged, "It is good"), tokenize=False)
    text = text.removesuffix("<end_of_turn>\n")
    ids = gemma_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert score.value == pytest.approx(plain_logits(model, ids).item(), abs=1e-4)
    assert again == score


def test_a_system_turn_that_a_template_leaves_out_is_merged() -> None:
    silent = (
        "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    codec = Codec(byte_tokenizer(["abc"], ["<s>"], template=silent))
    taken = acceptable(codec, [turn("Be kind.", "system"), turn("Hi")])
    assert taken == (turn("Be kind.\n\nHi"),)
    assert acceptable(codec, [turn("Hi")]) == (turn("Hi"),)


def test_a_template_that_fails_on_every_conversation_raises() -> None:
    refusing = "{{ raise_exception('never') }}"
    codec = Codec(byte_tokenizer(["abc"], ["<s>"], template=refusing))
    with pytest.raises(PromptError, match=r"rejects these messages \(never.*user"):
        acceptable(codec, [turn("Hi")])
    no_answers = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    codec = Codec(byte_tokenizer(["abc"], ["<s>"], template=no_answers))
    with pytest.raises(PromptError, match=r"does not show where the answer.*template="):
        acceptable(codec, [turn("Hi")])


# --- the context ---


def short(tokenizer: Any, limit: int = 40) -> Any:
    return small(
        LlamaForSequenceClassification,
        LlamaConfig,
        tokenizer,
        num_labels=1,
        max_position_embeddings=limit,
    )


def test_the_prompt_is_truncated_from_the_left_and_the_answer_kept(
    borders: list[RewardInput], llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The framing of the turn stays; as many of the prompt's last tokens as fit."""
    reward = reward_of(short(llama_tokenizer), llama_tokenizer)
    codec = Codec(llama_tokenizer)
    words = borders[5].text * 20
    item = RewardInput(RewardPrompt(words, messages=(turn(words),)), " It is good", ())
    with pytest.warns(StarsWarning, match="at most 40 tokens") as seen:
        [score, again] = reward.score([item, replace(item, finished=True)])
    assert len(seen) == 1
    assert score.truncated
    assert again.truncated
    assert 36 <= score.num_tokens <= 40
    frame = len(encode_answer(codec, [turn("")], " It is good", end_of_turn=False))
    kept = codec.decode(codec.encode(words)[-(score.num_tokens - frame) :])
    ids = encode_answer(codec, [turn(kept)], " It is good", end_of_turn=False)
    assert len(ids) == score.num_tokens
    plain = plain_logits(reward._model, ids).item()
    assert score.value == pytest.approx(plain, abs=1e-4)
    [fits] = reward.score([replace(item, prompt=RewardPrompt("Hi"))])
    assert not fits.truncated


def test_whole_turns_are_dropped_first(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    reward = reward_of(short(llama_tokenizer), llama_tokenizer)
    turns = (turn("old " * 30), turn("older " * 30, "assistant"), turn("the question"))
    item = RewardInput(RewardPrompt("x" * 500, messages=turns), " It is good", ())
    with pytest.warns(StarsWarning, match="40 tokens"):
        [score] = reward.score([item])
    alone = RewardInput(RewardPrompt("", messages=turns[2:]), " It is good", ())
    assert score.value == pytest.approx(reward.score([alone])[0].value, abs=1e-6)


def test_raw_ids_are_truncated(llama_tokenizer: PreTrainedTokenizerFast) -> None:
    model = short(llama_tokenizer)
    fingerprint = Codec(llama_tokenizer).fingerprint()
    config = ClassifierReward(model=model, tokenizer=llama_tokenizer, read="ids")
    reward = ClassifierRewardModel(config, fingerprint)
    answer = tuple(range(10, 20))
    item = RewardInput(RewardPrompt("", tuple(range(100, 200))), "", answer)
    with pytest.warns(StarsWarning, match="40 tokens"):
        [score] = reward.score([item])
    plain = plain_logits(model, [*range(170, 200), *answer]).item()
    assert score.value == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("on_overflow", ["truncate", "raise"])
def test_an_answer_is_never_truncated(
    on_overflow: str, llama_tokenizer: PreTrainedTokenizerFast
) -> None:
    reward = reward_of(short(llama_tokenizer), llama_tokenizer, on_overflow=on_overflow)
    prompt = RewardPrompt("What is it?")
    items = [RewardInput(prompt, text, ()) for text in (" good", " It is good" * 30)]
    if on_overflow == "truncate":
        with pytest.warns(StarsWarning):
            good, bad = score_each(reward, items)
        assert "the answer alone is longer" in str(bad)
    else:
        good, bad = score_each(reward, items)
        assert "on_overflow='truncate'" in str(bad)
    assert isinstance(bad, RewardError)
    assert not good.truncated


def test_truncated_prompts_are_counted(engine: StarsEngine, borders: list[RewardInput]) -> None:
    tokenizer = byte_tokenizer([item.text for item in borders], ["<s>"], bos_token="<s>")
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=ClassifierReward(model=short(tokenizer, 64), tokenizer=tokenizer),
        align=AlignParams(schedule=NoSchedule(), segment_len=8),
    )
    with StarsEngine(config, model=engine.model) as mine:
        sampling = SamplingParams(seed=2, max_tokens=16)
        with pytest.warns(StarsWarning, match="64 tokens"):
            [long] = mine.generate("The film was long. " * 10, sampling=sampling)
        [brief] = mine.generate("The film", sampling=sampling)
        assert long.usage.num_truncated_rewards == long.usage.num_reward_calls == 2
        assert brief.usage.num_truncated_rewards == 0
        assert mine.stats().num_truncated_rewards == 2


def test_chatml_keeps_its_newline_for_final_answers(borders: list[RewardInput]) -> None:
    """What ends a turn is found in the template: here a control token and a newline."""
    control = ["<|im_start|>", "<|im_end|>"]
    tokenizer = byte_tokenizer([item.text for item in borders], control, template=CHATML)
    codec = Codec(tokenizer)
    for text in ("good", "", "good\n", " <|im_end|>"):
        partial = encode_answer(codec, [turn("Hi")], text, end_of_turn=False)
        final = encode_answer(codec, [turn("Hi")], text, end_of_turn=True)
        end = [*tokenizer.convert_tokens_to_ids(["<|im_end|>"]), *codec.encode("\n")]
        assert final == [*partial, *end]
    with torch.inference_mode():
        assert codec.decode(partial).endswith(" <|im_end|>")


def test_variables_reach_the_template_of_the_reward(
    borders: list[RewardInput],
    llama: LlamaForSequenceClassification,
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer = copy.copy(llama_tokenizer)
    tokenizer.chat_template = "{{ rubric }}" + HEADERS
    reward = reward_of(llama, tokenizer, chat_template_kwargs={"rubric": "Be strict. <|eot_id|>"})
    plain = reward_of(llama, tokenizer)
    codec = Codec(tokenizer)
    added = codec.encode("Be strict. <|eot_id|>")
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") not in added
    for item in as_chats(borders[:8]):
        [score], [other] = reward.score([item]), plain.score([item])
        assert score.num_tokens == other.num_tokens + len(added)
        assert score.value != other.value
