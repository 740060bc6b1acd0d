"""A reward does not depend on what is scored beside it, whatever the classifier does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from stars_engine import ClassifierReward
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rewards.sharing import Sharing, batches, find_sharing
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


@pytest.mark.parametrize("name", MODELS)
def test_a_reward_is_the_same_alone_and_beside_others(
    name: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    live = ClassifierReward(model=MODELS[name]().eval(), tokenizer=tokenizer, batch_size=4)
    reward = ClassifierRewardModel(live)
    warned = [record for record in caplog.records if "by what is scored beside it" in record.msg]
    assert len(warned) == (name in APART)
    prompt = RewardPrompt("a b ")
    texts = ["c", "c d e f g h a b", "d d", "e", "a b c d e f g h"]
    items = [RewardInput(prompt, text, ()) for text in texts]
    check_reward_model(reward, items)
    together = [score.value for score in reward.score(items)]
    alone = [reward.score([item])[0].value for item in items]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == len(texts)  # the texts do differ


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
def test_what_may_share_a_batch_is_found(sharing: Sharing, *, raises: bool) -> None:
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


def test_equal_lengths_are_not_filled_up() -> None:
    assert list(batches([3, 1, 2, 1], 8, Sharing.EQUAL)) == [[1, 3], [2], [0]]
    assert list(batches([3, 1, 2, 1], 8, Sharing.ANY)) == [[1, 3, 2, 0]]
    assert list(batches([], 8, Sharing.ANY)) == []
