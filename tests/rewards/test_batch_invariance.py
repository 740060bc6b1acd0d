"""Rewards do not depend on batch composition, even if the model's outputs do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    FNetForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from stars_engine import ClassifierReward, ProcessReward, YesNoReward
from stars_engine.rewards.batch_invariance import Sharing, batches, find_sharing
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rewards.process import ProcessRewardModel
from stars_engine.rewards.yes_no import YesNoRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput, RewardPrompt

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SMALL = {"vocab_size": 32, "num_labels": 1, "pad_token_id": 0, "initializer_range": 0.3}
MODELS = {
    "bert": lambda: BertForSequenceClassification(
        BertConfig(**SMALL, **SIZES, num_attention_heads=2)
    ),
    "llama": lambda: LlamaForSequenceClassification(
        LlamaConfig(**SMALL, **SIZES, num_attention_heads=2, num_key_value_heads=1)
    ),
    "xlnet": lambda: XLNetForSequenceClassification(
        XLNetConfig(**SMALL, d_model=16, n_layer=2, n_head=2, d_inner=32)
    ),
    "fnet": lambda: FNetForSequenceClassification(FNetConfig(**SMALL, **SIZES)),
}
APART = {"xlnet", "fnet"}
TEXTS = ["c", "c d e f g h a b", "d d", "e", "a b c d e f g h"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[SEP]", *"abcdefgh"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]"
    )


class FromTheEnd(GPT2LMHeadModel):
    """Learned positions, counted from the end of the batch: padding moves a row's tokens."""

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        positions = torch.arange(input_ids.shape[1]).flip(0)
        return super().forward(input_ids, position_ids=positions.expand_as(input_ids), **options)


def llama_lm() -> LlamaForCausalLM:
    sizes = {**SIZES, "vocab_size": 32, "num_attention_heads": 2, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**sizes))


def from_the_end() -> FromTheEnd:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.5}
    return FromTheEnd(GPT2Config(vocab_size=32, bos_token_id=None, eos_token_id=None, **sizes))


def fnet_by_token() -> FNetForTokenClassification:
    return FNetForTokenClassification(FNetConfig(**{**SMALL, "num_labels": 2}, **SIZES))


def judge(tokenizer: Any, model: Any) -> YesNoRewardModel:
    asking = {"template": "{prompt}{completion}", "positive": "a", "negative": "b"}
    return YesNoRewardModel(
        YesNoReward(model=model, tokenizer=tokenizer, batch_size=4, answer_prefix="", **asking)
    )


def by_words(tokenizer: Any, model: Any) -> ProcessRewardModel:
    asking = {"head": "tokens", "positive": "a", "negative": "b"}
    return steps(tokenizer, model, **asking)


def steps(tokenizer: Any, model: Any, **asking: Any) -> ProcessRewardModel:
    shape = {"marker": "h", "step_separator": " d ", "template": "{prompt}{completion}"}
    return ProcessRewardModel(
        ProcessReward(model=model, tokenizer=tokenizer, batch_size=4, **shape, **asking)
    )


def by_labels(tokenizer: Any, model: Any) -> ProcessRewardModel:
    return steps(tokenizer, model, head="classifier", label=1)


@pytest.mark.parametrize(
    ("make", "model", "apart"),
    [
        (judge, llama_lm, False),
        (judge, from_the_end, True),
        (by_words, llama_lm, False),
        (by_words, from_the_end, True),
        (by_labels, fnet_by_token, True),
    ],
)
def test_judges_and_process_rewards_are_batch_invariant(
    make: Callable[[Any, Any], ProcessRewardModel | YesNoRewardModel],
    model: Callable[[], Any],
    apart: bool,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    reward = make(tokenizer, model().eval())
    warned = [record for record in caplog.records if "depend on batch composition" in record.msg]
    assert len(warned) == apart
    items = [RewardInput(RewardPrompt("a b "), text, ()) for text in TEXTS]
    check_reward_model(reward, items)
    together = [score.value for score in reward.score(items)]
    alone = [reward.score([item])[0].value for item in items]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == len(TEXTS)  # the texts do differ


@pytest.mark.parametrize("name", MODELS)
def test_a_reward_is_the_same_alone_and_in_a_batch(
    name: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    live = ClassifierReward(model=MODELS[name]().eval(), tokenizer=tokenizer, batch_size=4)
    reward = ClassifierRewardModel(live)
    warned = [record for record in caplog.records if "depend on batch composition" in record.msg]
    assert len(warned) == (name in APART)
    prompt = RewardPrompt("a b ")
    items = [RewardInput(prompt, text, ()) for text in TEXTS]
    check_reward_model(reward, items)
    together = [score.value for score in reward.score(items)]
    alone = [reward.score([item])[0].value for item in items]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == len(TEXTS)  # the texts do differ


class Counted:
    """Scores a row by its sum, and by its batch in a given way; notes the batches."""

    def __init__(self, sharing: Sharing, *, raises: bool = False) -> None:
        self.sharing, self.raises = sharing, raises

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[float]:
        widths = {len(row) for row in rows}
        wrong = (self.sharing is not Sharing.ANY and len(widths) > 1) or (
            self.sharing is Sharing.NONE and len(rows) > 1
        )
        if wrong and self.raises:
            raise ValueError("no padding token is defined")
        return [sum(row) + 0.01 * wrong for row in rows]


@pytest.mark.parametrize("sharing", Sharing)
@pytest.mark.parametrize("raises", [False, True])
def test_the_self_check_finds_which_texts_may_share_a_batch(
    sharing: Sharing, *, raises: bool
) -> None:
    run = Counted(sharing, raises=raises)
    assert find_sharing(run, [1], [2, 3, 4], name="x", dtype=torch.float32) is sharing


def test_a_model_that_fails_says_so_when_it_is_asked() -> None:
    def fail(rows: object) -> list[float]:
        raise RuntimeError("broken")

    assert find_sharing(fail, [1], [2, 3], name="x", dtype=torch.float32) is Sharing.ANY


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        (Sharing.ANY, [[1, 4], [0, 2], [3]]),
        (Sharing.EQUAL, [[1, 4], [0, 2], [3]]),
        (Sharing.NONE, [[1], [4], [0], [2], [3]]),
    ],
)
def test_batches_of_pairs(sharing: Sharing, expected: list[list[int]]) -> None:
    assert list(batches([5, 1, 5, 5, 1], 2, sharing)) == expected


def test_equal_lengths_are_not_padded() -> None:
    assert list(batches([3, 1, 2, 1], 8, Sharing.EQUAL)) == [[1, 3], [2], [0]]
    assert list(batches([3, 1, 2, 1], 8, Sharing.ANY)) == [[1, 3, 2, 0]]
    assert list(batches([], 8, Sharing.ANY)) == []
