"""Process reward models read finished steps and markers once, and score as over whole texts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
)

from benchmarks.tiny_models import random_model
from stars_engine import ProcessReward
from stars_engine.kv_cache.cache_entry import common_prefix_len
from stars_engine.rewards.encoding import EncodedInput
from stars_engine.rewards.process import ProcessRewardModel
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.incremental import check, reader_of
from tests.support.rewards import small

WORDS = [f"w{number}" for number in range(48)]
PROMPT = " ".join(WORDS[:20]) + " "
BY_WORDS = {"head": "tokens", "positive": "good", "negative": "bad"}
BY_LABELS = {"head": "classifier", "label": 1}


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A token for each word, whatever its neighbours."""
    names = ["[PAD]", "[UNK]", "<step>", "good", "bad", *WORDS]
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        additional_special_tokens=["<step>"],
    )


def live(words: PreTrainedTokenizerFast, model: Any, **more: Any) -> ProcessRewardModel:
    shape = {"step_separator": "\n", "marker": "<step>", "template": "{prompt}{completion}"}
    fields = {**shape, "aggregate": "mean", **more}
    return ProcessRewardModel(ProcessReward(model=model, tokenizer=words, **fields))


def by_words(words: PreTrainedTokenizerFast, family: str, **more: Any) -> ProcessRewardModel:
    return live(words, random_model(family, AutoModelForCausalLM), **BY_WORDS, **more)


def by_labels(words: PreTrainedTokenizerFast, family: str, **more: Any) -> ProcessRewardModel:
    model = random_model(family, AutoModelForTokenClassification, num_labels=2)
    return live(words, model, **BY_LABELS, **more)


def items(texts: Sequence[str]) -> list[RewardInput]:
    return [RewardInput(RewardPrompt(PROMPT), text, ()) for text in texts]


def segment(rng: random.Random, *, ends: bool) -> str:
    """Four words; a step may end between them."""
    chosen = [f"{word} " for word in rng.choices(WORDS, k=4)]
    return "".join([*chosen[:2], "\n" if ends else "", *chosen[2:]])


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
@pytest.mark.parametrize("make", [by_words, by_labels])
def test_scores_equal_those_of_whole_texts(
    make: Any, family: str, words: PreTrainedTokenizerFast
) -> None:
    reward = make(words, family)
    assert reward.about()["path"] == reward.path == "new tokens only"
    whole = make(words, family)
    whole._incremental = None
    rng = random.Random(3)
    kept = ""
    for _ in range(5):
        # Steps end in some of the candidates, and after what was kept.
        texts = [kept + segment(rng, ends=rng.random() < 0.5) for _ in range(4)]
        texts[0] = kept + "\n" + segment(rng, ends=False)
        asked = items(texts)
        for ours, plain in zip(reward.step_scores(asked), whole.step_scores(asked), strict=True):
            assert ours == pytest.approx(plain, abs=1e-5)
        check(reward, [reward._reader.read(item) for item in asked])
        kept = rng.choice(texts)
    assert kept.count("\n") > 1


@pytest.mark.parametrize("make", [by_words, by_labels])
@pytest.mark.parametrize("num_candidates", [1, 4])
def test_finished_steps_are_not_read_again(
    num_candidates: int, make: Any, words: PreTrainedTokenizerFast
) -> None:
    """For each candidate its words, and the markers within and behind them."""
    reward = make(words, "llama")
    reader = reader_of(reward)
    reward.score(items([""]))
    assert reader.num_computed == 20 + 1
    rng = random.Random(1)
    kept, kept_ids = "", reward._reader.read(items([""])[0]).ids
    for ends in (False, True, True, False, False, True, False):
        batches = [[segment(rng, ends=ends) for _ in range(num_candidates)] for _ in range(2)]
        for texts in batches:  # a rejected one, and one of which a candidate is kept
            before = reader.num_computed
            asked = items([kept + text for text in texts])
            reward.score(asked)
            rows = [reward._reader.read(item).ids for item in asked]
            assert reader.num_computed - before == num_candidates * (4 + ends + 1)
            assert all(len(ids) - common_prefix_len(ids, kept_ids) == 4 + ends + 1 for ids in rows)
        kept, kept_ids = kept + batches[1][-1], rows[-1]
    assert reader.num_prefills == 1


def test_a_step_that_ends_with_its_segment_keeps_its_marker(words: PreTrainedTokenizerFast) -> None:
    reward = by_labels(words, "llama")
    reader = reader_of(reward)
    reward.score(items(["w1 w2"]))
    fed = reader.num_computed
    reward.score(items(["w1 w2\nw3 w4", "w1 w2\nw5"]))
    assert reader.num_computed - fed == (2 + 1) + (1 + 1)


def test_unfinished_steps_that_do_not_count_cost_nothing(words: PreTrainedTokenizerFast) -> None:
    reward = by_labels(words, "llama", score_unfinished=False)
    reader = reader_of(reward)
    reward.score(items(["w1 w2 "]))
    first = reward.score(items(["w1 w2\nw3 "]))
    fed = reader.num_computed
    again = reward.score(items([f"w1 w2\nw3 w{number} " for number in range(4, 8)]))
    assert reader.num_computed == fed
    assert [score.value for score in again] == [first[0].value] * 4
    reward.score(items(["w1 w2\nw3 w4\nw5"]))
    assert reader.num_computed - fed == 2 + 1


def test_a_position_that_was_not_requested_is_read_again(words: PreTrainedTokenizerFast) -> None:
    reward = by_words(words, "llama")
    reader = reader_of(reward)
    ids = [*range(3, 33)]
    check(reward, [EncodedInput(ids)])
    check(reward, [EncodedInput(ids, (25, 29))])
    assert reader.num_computed == 30 + 5
    check(reward, [EncodedInput(ids, (25, 29)), EncodedInput(ids[:26], (25,)), EncodedInput(ids)])
    assert reader.num_computed == 30 + 5


def test_cached_outputs_are_small(words: PreTrainedTokenizerFast) -> None:
    """Labels of points: neither hidden states nor a vocabulary's logits."""
    reward = by_words(words, "llama")
    check(reward, [EncodedInput([*range(3, 33)], (10, 20, 29))])
    check(reward, [EncodedInput([*range(3, 43)], (10, 20, 39))])
    kept = [each for each in reader_of(reward).cache.pool.prefixes() if each.outputs]
    assert kept
    for prefix in kept:
        for known in (prefix, *prefix.uncommitted):
            assert all(output.shape == (2,) for output in known.outputs.values())
            bases = [output._base for output in known.outputs.values()]
            assert all(base is None or base.numel() <= 2 * 3 for base in bases)


def test_a_trained_head(words: PreTrainedTokenizerFast) -> None:
    """What came of tokens before is not used again, though the backbone is the same."""
    model = random_model("llama", AutoModelForCausalLM)
    model.v_head = torch.nn.Linear(32, 1)
    reward = live(words, model, head="classifier")
    assert reward.path == "new tokens only"
    asked = items(["w1 w2\nw3"])
    [before] = reward.step_scores(asked)
    with torch.no_grad():
        model.v_head.bias += 1.0
    [after] = reward.step_scores(asked)
    logits = [torch.tensor(scores).logit() for scores in (before, after)]
    torch.testing.assert_close(logits[1] - logits[0], torch.ones(2), atol=1e-4, rtol=0.0)


def test_bidirectional_models_read_whole_texts(words: PreTrainedTokenizerFast) -> None:
    model = small(BertForTokenClassification, BertConfig, words, num_labels=2, pad_token_id=0)
    reward = live(words, model, **BY_LABELS)
    assert reward._incremental is None
    assert reward.path.startswith("whole texts (")
    [scores] = reward.step_scores(items(["w1 w2\nw3"]))
    row = reward._reader.read(items(["w1 w2\nw3"])[0])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, list(row.marks)]
    assert scores == pytest.approx(logits.softmax(-1)[:, 1].tolist(), abs=1e-5)


@pytest.mark.parametrize("family", ["bloom", "falcon"])
def test_other_models_say_why_they_read_whole_texts(
    family: str, words: PreTrainedTokenizerFast
) -> None:
    reward = by_words(words, family)
    assert reward._incremental is None
    assert reward.path.startswith("whole texts (")
