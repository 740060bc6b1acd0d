"""Sequence classifiers against plain forwards: ids, templates, outputs, the context."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from stars_engine import (
    ClassifierReward,
    ModelLoadError,
    SamplingParams,
    StarsEngine,
    StarsWarning,
)
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rewards.labels import read_label
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.rewards import plain_logits
from tests.support.shared_files import shared_model

PROMPTS = ["This movie", "I saw", "The best thing about this film is that it"]


@pytest.fixture(scope="module")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of another family, with [CLS] and [SEP] around a text."""
    words = [
        "this",
        "movie",
        "is",
        "good",
        "bad",
        "the",
        "a",
        "i",
        "saw",
        "it",
        "was",
        "and",
        "of",
        "film",
        "not",
        "very",
        "great",
    ]
    vocab = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def bert(num_labels: int = 1) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=num_labels,
    )
    return BertForSequenceClassification(config).eval()


def inputs_of(engine: StarsEngine, num_tokens: int = 24) -> list[RewardInput]:
    """Every prefix of real completions, ids and all."""
    items = []
    for prompt in PROMPTS:
        [result] = engine.vanilla(prompt, sampling=SamplingParams(seed=3, max_tokens=num_tokens))
        codec = engine.model.codec
        ids = codec.encode_prompt(prompt)
        shown = RewardPrompt(prompt, tuple(ids))
        for size in range(0, len(result.token_ids), 5):
            text, used = codec.completion_text(ids, result.token_ids[:size])
            items.append(RewardInput(shown, text, result.token_ids[:used]))
    return items


def test_a_shared_tokenizer_gets_the_ids_unchanged(imdb_engine: StarsEngine) -> None:
    """Decoding and encoding again would change ids; the rewards would follow."""
    directory = shared_model("rm-sentiment-656K")
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    reward = imdb_engine.reward
    assert reward.reads_ids
    items = inputs_of(imdb_engine)
    check_reward_model(reward, items)
    reencoded = 0
    for item, score in zip(items, reward.score(items), strict=True):
        ids = [*item.prompt.token_ids, *item.token_ids]
        with torch.inference_mode():
            plain = model(input_ids=torch.tensor([ids])).logits[0, 0].item()
        assert score.value == pytest.approx(plain, abs=1e-4)
        assert score.num_tokens == len(ids)
        reencoded += tokenizer(item.prompt.text + item.text)["input_ids"] != ids
    assert reencoded > 0


@pytest.mark.slow
def test_candidate_rewards_equal_plain_forwards(engine: StarsEngine) -> None:
    """Rewards in a result are those of the whole text, at every kept segment."""
    directory = Path(__file__).parents[2] / "stars_engine" / "embedded" / "reward"
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    [result] = engine.generate("This movie", sampling=SamplingParams(seed=2))
    ids = engine.model.codec.encode_prompt("This movie")
    for segment in result.segments:
        ids += [token for token in segment.token_ids if token not in engine.model.end_ids]
        with torch.inference_mode():
            plain = model.eval()(input_ids=torch.tensor([ids])).logits[0, 0].item()
        assert segment.reward == pytest.approx(plain, abs=1e-4)
    assert result.reward == result.segments[-1].reward


def test_encoder_with_its_own_tokenizer(word_tokenizer: PreTrainedTokenizerFast) -> None:
    model = bert()
    reward = ClassifierRewardModel(
        ClassifierReward(model=model, tokenizer=word_tokenizer, batch_size=3), "another"
    )
    assert not reward.reads_ids
    prompt = RewardPrompt("this movie")
    texts = ["", " is good", " is not very good and it was bad", " was", " [SEP] good"]
    items = [RewardInput(prompt, text, ()) for text in texts]
    check_reward_model(reward, items)
    for item, score in zip(items[:4], reward.score(items), strict=False):
        encoded = word_tokenizer(item.prompt.text + item.text, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        plain = model(**encoded).logits[0, 0].item()
        assert score.value == pytest.approx(plain, abs=1e-4)


def test_several_labels_need_a_choice(word_tokenizer: PreTrainedTokenizerFast) -> None:
    model = bert(num_labels=3)
    model.config.id2label = {0: "neg", 1: "neutral", 2: "pos"}
    live = {"model": model, "tokenizer": word_tokenizer}
    with pytest.raises(ModelLoadError, match=r"3 labels: 0 \(neg\).*label="):
        ClassifierRewardModel(ClassifierReward(**live))
    with pytest.raises(ModelLoadError, match="happy"):
        ClassifierRewardModel(ClassifierReward(**live, label="happy"))
    item = [RewardInput(RewardPrompt("this movie"), " is good", ())]
    by_name = ClassifierRewardModel(ClassifierReward(**live, label="pos")).score(item)
    by_index = ClassifierRewardModel(ClassifierReward(**live, label=2)).score(item)
    other = ClassifierRewardModel(ClassifierReward(**live, label=0)).score(item)
    assert by_name == by_index != other


def test_a_padding_id_inside_a_text_is_not_padding(engine: StarsEngine) -> None:
    """transformers looks for the last token that is not the pad id; we choose the index."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=4096, n_embd=16, n_layer=1, n_head=2, num_labels=1, pad_token_id=2)
    ).eval()
    tokenizer = engine.model.codec.tokenizer
    fingerprint = engine.model.codec.fingerprint()
    reward = ClassifierRewardModel(ClassifierReward(model=model, tokenizer=tokenizer), fingerprint)
    prompt = RewardPrompt("", (1, 7))
    items = [RewardInput(prompt, "", ids) for ids in [(5, 2), (5,), (9, 8, 7, 6, 2)]]
    check_reward_model(reward, items)
    with torch.inference_mode():
        hidden = model.transformer(input_ids=torch.tensor([[1, 7, 5, 2]])).last_hidden_state
        plain = model.score(hidden[0, -1]).item()
    assert reward.score(items)[0].value == pytest.approx(plain, abs=1e-5)


def test_a_long_prompt_is_truncated_from_the_left(word_tokenizer: PreTrainedTokenizerFast) -> None:
    reward = ClassifierRewardModel(ClassifierReward(model=bert(), tokenizer=word_tokenizer))
    long = RewardInput(RewardPrompt("movie " * 100), " is good", ())
    with pytest.warns(StarsWarning, match="at most 64 tokens"):
        [score] = reward.score([long])
    assert score.num_tokens == 64
    assert math.isfinite(score.value)


def test_a_language_model_is_refused_as_classifier() -> None:
    """Its head would be random: another reward in every process."""
    config = ClassifierReward(name_or_path=shared_model("imdb-lm-656K"), label=0)
    with pytest.raises(
        ModelLoadError, match=r"lacks weights.*score\.weight.*Hint: use a checkpoint"
    ):
        ClassifierRewardModel(config)


def test_positions_of_roberta_begin_after_the_padding(
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """66 rows for 64 tokens; a tokenizer may say still less."""
    config = RobertaConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=66,
        pad_token_id=1,
        num_labels=1,
    )
    model = RobertaForSequenceClassification(config).eval()
    for limit, expected in ((10**30, 64), (48, 48)):
        tokenizer = copy.deepcopy(word_tokenizer)
        tokenizer.model_max_length = limit
        reward = ClassifierRewardModel(ClassifierReward(model=model, tokenizer=tokenizer))
        long = RewardInput(RewardPrompt("movie " * 100), " is good", ())
        with pytest.warns(StarsWarning, match=f"at most {expected} tokens"):
            [score] = reward.score([long])
        assert score.num_tokens == expected


def test_reading_ids_of_another_tokenizer_is_refused(
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = ClassifierReward(model=bert(), tokenizer=word_tokenizer, read="ids")
    with pytest.raises(ModelLoadError, match="needs the language model's tokenizer"):
        ClassifierRewardModel(config, "someone else's")


# --- outputs ---


def test_outputs_of_one_logit_and_of_several(
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    items = [RewardInput(RewardPrompt("this movie"), text, ()) for text in (" is good", " was", "")]
    for num_labels, label in ((1, None), (3, 2), (2, 0)):
        model = bert(num_labels)
        model.classifier.weight.data *= 40  # labels far from even

        def values(output: str, model: Any = model, label: int | None = label) -> list[float]:
            config = ClassifierReward(
                model=model, tokenizer=word_tokenizer, label=label, output=output
            )
            reward = ClassifierRewardModel(config)
            check_reward_model(reward, items)
            return [score.value for score in reward.score(items)]

        for item, logit, probability, log_odds in zip(
            items, values("logit"), values("probability"), values("log_odds"), strict=True
        ):
            encoded = word_tokenizer(item.prompt.text + item.text)["input_ids"]
            plain = plain_logits(model, encoded)
            assert logit == pytest.approx(plain[label or 0].item(), abs=1e-4)
            softmax = plain.softmax(-1)[label or 0] if label is not None else plain[0].sigmoid()
            assert probability == pytest.approx(softmax.item(), abs=1e-5)
            odds = torch.log(softmax) - torch.log1p(-softmax)
            assert log_odds == pytest.approx(odds.item(), abs=1e-3)


def test_log_odds_are_finite_where_probabilities_are_rounded() -> None:
    logits = torch.tensor([[200.0, -300.0, 0.0], [-1e4, 3.0, 1e4]])
    assert read_label(logits, 0, "probability").tolist() == [1.0, 0.0]
    assert read_label(logits, 0, "log_odds").tolist() == [200.0, -2e4]
    own = read_label(logits, 0, "log_odds", independent=True)
    assert own.tolist() == [200.0, -1e4]


def test_labels_of_multi_label_models_are_independent(
    word_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = bert(num_labels=3)
    model.config.problem_type = "multi_label_classification"
    item = RewardInput(RewardPrompt("this movie"), " is good", ())
    live = {"model": model, "tokenizer": word_tokenizer, "label": 1}
    [probability] = ClassifierRewardModel(ClassifierReward(**live, output="probability")).score(
        [item]
    )
    plain = plain_logits(model, word_tokenizer("this movie is good")["input_ids"])[1]
    assert probability.value == pytest.approx(plain.sigmoid().item(), abs=1e-5)
