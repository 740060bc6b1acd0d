"""Rewards that average the scores of an answer's tokens, against plain forwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

from benchmarks.tiny_models import random_model
from stars_engine import ClassifierReward, ConfigError, ModelLoadError, ProcessReward
from stars_engine.messages import Message
from stars_engine.rewards.aggregation import aggregate
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rewards.process import ProcessRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.rewards import CHATML

WORDS = ["this", "movie", "is", "good", "bad", "the", "plot", "was", "not", "very", "great"]
PROMPT = RewardPrompt("this movie ", (4, 5))
ANSWER = (6, 12, 13, 7, 9, 11, 12, 13, 8)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return tokenizer_of(WORDS)


def tokenizer_of(names: list[str]) -> PreTrainedTokenizerFast:
    """A token for each word."""
    control = ["[PAD]", "[UNK]", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: index for index, word in enumerate([*control, *names])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        additional_special_tokens=control[2:],
    )


@pytest.fixture(scope="module")
def causal() -> Any:
    return random_model(
        "llama", AutoModelForSequenceClassification, vocab_size=15, num_labels=1, scale=4
    )


def bert(model_class: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"initializer_range": 0.5}  # so that what comes after a token shows
    config = BertConfig(vocab_size=15, intermediate_size=16, num_labels=1, **sizes, **more)
    return model_class(config).eval()


def text_of(ids: tuple[int, ...]) -> str:
    return " ".join(WORDS[token - 4] for token in ids)


def answers(prompt: RewardPrompt) -> list[RewardInput]:
    """Every beginning of an answer."""
    return [
        RewardInput(prompt, text_of(ANSWER[:size]), ANSWER[:size])
        for size in range(len(ANSWER) + 1)
    ]


def weighted(scores: list[float], how: str, half_life: float) -> float:
    """Recursively, as averages of streams are written."""
    total = weight = 0.0
    decay = 1.0 if how == "mean" else 0.5 ** (1 / half_life)
    for score in scores:
        total, weight = decay * total + score, decay * weight + 1
    return total / weight


@pytest.mark.parametrize("how", ["mean", "ema"])
@pytest.mark.parametrize("read", ["ids", "text"])
def test_an_aggregate_is_that_of_plain_forwards(
    how: str, read: str, causal: Any, words: PreTrainedTokenizerFast
) -> None:
    """Of a forward pass over each beginning of the answer, alone; the pass is incremental."""
    given = {"half_life": 3.0} if how == "ema" else {}
    config = ClassifierReward(model=causal, tokenizer=words, read=read, aggregate=how, **given)
    reward = ClassifierRewardModel(config)
    assert reward.path == "new tokens only"
    items = answers(PROMPT)
    with torch.inference_mode():
        plain = [
            causal(input_ids=torch.tensor([[*PROMPT.token_ids, *item.token_ids]])).logits.item()
            for item in items
        ]
    one_by_one = [reward.score([item])[0].value for item in items]
    expected = [weighted(plain[1 : size + 1] or plain[:1], how, 3.0) for size in range(len(items))]
    assert one_by_one == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == len(items)
    check_reward_model(reward, items)
    [scores] = reward.token_scores([items[-1]])
    assert scores == pytest.approx(plain[1:], abs=1e-5)
    assert reward.score([items[-1]])[0].num_tokens == len(PROMPT.token_ids) + len(ANSWER)


def test_tokens_of_earlier_candidates_are_not_read_again(
    causal: Any, words: PreTrainedTokenizerFast
) -> None:
    reward = ClassifierRewardModel(
        ClassifierReward(model=causal, tokenizer=words, read="ids", aggregate="mean")
    )
    assert reward._incremental is not None
    for item in answers(PROMPT):
        reward.score([item])
    assert reward._incremental.num_computed == len(PROMPT.token_ids) + len(ANSWER)


def test_tokens_of_the_template_before_the_answer_do_not_count(
    causal: Any,
) -> None:
    """What ends a finished answer does."""
    chat = tokenizer_of(WORDS)
    chat.chat_template = CHATML
    config = ClassifierReward(model=causal, tokenizer=chat, aggregate="mean")
    reward = ClassifierRewardModel(config)
    prompt = replace(PROMPT, messages=(Message(role="user", content="this movie"),))
    item = RewardInput(prompt, "was very bad", (11, 13, 8))
    [partial], [final] = (
        reward.token_scores([replace(item, finished=finished)]) for finished in (False, True)
    )
    ids = reward._reader.read(item, each_token=True).ids
    with torch.inference_mode():
        plain = [
            causal(input_ids=torch.tensor([ids[:size]])).logits.item()
            for size in range(1, len(ids) + 1)
        ]
    assert partial == pytest.approx(plain[-3:], abs=1e-5)
    assert final[:3] == pytest.approx(partial, abs=1e-5)
    assert len(final) > 3


def test_other_models_refuse_by_name(words: PreTrainedTokenizerFast) -> None:
    live = {"model": bert(BertForSequenceClassification), "tokenizer": words}
    with pytest.raises(ModelLoadError, match=r"aggregate='mean'.*BertForSequence.*aggregate='la"):
        ClassifierRewardModel(ClassifierReward(**live, aggregate="mean"))
    last = ClassifierRewardModel(ClassifierReward(**live))
    with pytest.raises(ModelLoadError, match="BertForSequenceClassification"):
        last.token_scores(answers(PROMPT))
    steps = {"step_separator": "\n", "marker": "good", "head": "classifier"}
    live = {"model": bert(BertForTokenClassification), "tokenizer": words, **steps}
    ProcessRewardModel(ProcessReward(**live))
    with pytest.raises(ModelLoadError, match=r"aggregate='ema'.*BertForTokenClassification"):
        ProcessRewardModel(ProcessReward(**live, aggregate="ema"))


def test_a_causal_head_on_a_body_that_looks_ahead_is_refused(
    causal: Any, words: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found out by comparing a beginning alone with the same beginning of a text."""
    for module in causal.modules():
        if hasattr(module, "is_causal"):
            monkeypatch.setattr(module, "is_causal", False)
    body = causal.base_model
    forward = body.forward

    def looking_ahead(*args: Any, **inputs: Any) -> Any:
        output = forward(*args, **inputs)
        mean = output.last_hidden_state.mean(1, keepdim=True)
        output.last_hidden_state = output.last_hidden_state + mean
        return output

    monkeypatch.setattr(body, "forward", looking_ahead)
    with pytest.raises(ModelLoadError, match="needs a causal model"):
        ClassifierRewardModel(
            ClassifierReward(model=causal, tokenizer=words, read="ids", aggregate="ema")
        )


def test_averages_of_steps() -> None:
    scores = [0.9, 0.1, 0.4]
    assert aggregate(scores, "ema", 1.0) == pytest.approx((0.4 + 0.1 / 2 + 0.9 / 4) / 1.75)
    assert aggregate(scores, "ema", 1e9) == pytest.approx(aggregate(scores, "mean", 1.0))
    assert aggregate(scores, "ema", 1e-9) == pytest.approx(aggregate(scores, "last", 1.0))


def test_a_half_life_needs_its_aggregate() -> None:
    with pytest.raises(ConfigError, match=r"half_life=4\.0 needs aggregate='ema'"):
        ClassifierReward(name_or_path="a/b", aggregate="mean", half_life=4)
    assert ClassifierReward(name_or_path="a/b", aggregate="ema", half_life=4).half_life == 4
