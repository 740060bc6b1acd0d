"""The toxicity reward: log-odds that a continuation is not toxic, after any prefix of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForSequenceClassification
from transformers import PreTrainedTokenizerFast as Tokenizer

from training.data import batches, encode_rows
from training.reward_head import Weights, load_with_head, prefix_logits, prefix_loss
from training.safety import process
from training.safety.figures import beside, shown
from training.safety.linear import LinearRegressor, bag_of_words, words_and_pieces
from training.safety.toxicity_data import ScoredRow, as_continuation, scored_texts

NUM_STEPS, BATCH_SIZE, LR, DROPOUT = 200, 64, 0.002, 0.2
ROW_LEN = 96
RISE = 4  # tokens
PREFIX_LENS = (8, 16, 24)  # tokens: segment borders


def encode(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Return `[bos] text [eos]` as ids."""
    ends = {"bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id}
    return [row[:ROW_LEN] for row in encode_rows(texts, tokenizer.backend_tokenizer, **ends)]


def train(
    model: LlamaForSequenceClassification,
    rows: Sequence[Sequence[int]],
    toxicity: Sequence[float],
    *,
    num_steps: int,
    seed: int,
    log: Callable[[str], None],
) -> float:
    """Train on every prefix of every row; return the final loss.

    Scores are probabilities, so they are the targets of the cross-entropy: the logit becomes that
    of the expected score of the finished text, given the text so far.
    """
    torch.manual_seed(seed)

    def loss(picked: Sequence[int]) -> torch.Tensor:
        chosen = [rows[index] for index in picked]
        values = prefix_logits(model, chosen, dropout=DROPOUT)
        harmless = [1 - toxicity[index] for index in picked]
        total, weight = prefix_loss(values, harmless, chosen, Weights(rise=RISE))
        return total / weight

    picks = batches(rows, batch_size=BATCH_SIZE, num_steps=num_steps, seed=seed)
    return process.fit(model, [lambda picked=p: loss(picked) for p in picks], lr=LR, log=log)


def linear_baseline(rows: Sequence[ScoredRow]) -> LinearRegressor:
    """Train a bag of words on the reward's rows; training on prefixes too was worse (dev rows)."""
    return LinearRegressor(bag_of_words(), strength=3).fit(*scored_texts(rows))


def judge(rows: Sequence[ScoredRow]) -> LinearRegressor:
    """Train the judge of evaluations, on rows that the reward never saw; it never guides."""
    return LinearRegressor(words_and_pieces(), strength=30).fit(*scored_texts(rows))


def quality(
    model: LlamaForSequenceClassification,
    tokenizer: Tokenizer,
    baseline: LinearRegressor,
    held_out: Sequence[ScoredRow],
) -> list[dict[str, Any]]:
    """Measure reward and baseline on the same beginnings of held-out continuations.

    Returns:
        A row for each length in tokens and for whole texts ("end"): number of texts that are
        longer, and for each model AUC of toxicity above 0.5 and Spearman with the score, with 95%
        intervals, and the differences.
    """
    texts = [as_continuation(row.continuation) for row in held_out]
    scores = np.array([row.continuation_toxicity for row in held_out])
    encoded = encode(texts, tokenizer)
    values = process.all_logits(model, encoded)
    table = []
    for length in (*PREFIX_LENS, "end"):
        longer = [i for i, ids in enumerate(encoded) if length == "end" or len(ids) - 2 > length]
        if length == "end":
            cuts = texts
            predicted = [values[i][-1] for i in longer]
        else:
            cuts = [tokenizer.decode(encoded[i][1 : length + 1]) for i in longer]
            predicted = [values[i][length] for i in longer]
        estimates = {"reward": -np.array(predicted), "bag of words": baseline.predict(cuts)}
        table.append({"tokens": length, **beside(estimates, scores[longer])})
    return table


def judge_quality(model: LinearRegressor, held_out: Sequence[ScoredRow]) -> dict[str, Any]:
    """Measure the judge on whole held-out continuations."""
    scores = np.array([row.continuation_toxicity for row in held_out])
    predicted = model.predict([as_continuation(row.continuation) for row in held_out])
    return {
        **beside({"judge": predicted}, scores),
        "mean": {"judge": float(predicted.mean()), "scored": float(scores.mean())},
        "above_half": {
            "judge": float((predicted > 0.5).mean()),
            "scored": float((scores > 0.5).mean()),
        },
    }


def make(
    parts: dict[str, list[ScoredRow]],
    lm_directory: Path,
    directory: Path,
    *,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Train and write the reward; return the held-out figures of reward, baseline and judge."""
    model, tokenizer = load_with_head(lm_directory)
    texts, scores = scored_texts(parts["reward"])
    rows = encode(texts, tokenizer)
    loss = train(model, rows, scores, num_steps=NUM_STEPS, seed=seed, log=log)
    process.save(model, tokenizer, directory)
    table = quality(model, tokenizer, linear_baseline(parts["reward"]), parts["eval"])
    log(shown(table))
    return {
        "rows": {name: len(rows) for name, rows in parts.items()},
        "parameters": model.num_parameters(),
        "loss": loss,
        "held_out": table,
        "judge_held_out": judge_quality(judge(parts["judge"]), parts["eval"]),
    }
