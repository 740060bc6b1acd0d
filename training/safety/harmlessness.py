"""The harmlessness reward: which of two answers people call less harmful, after any prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import vstack
from sklearn.linear_model import LogisticRegression
from torch.nn import functional
from transformers import LlamaForSequenceClassification
from transformers import PreTrainedTokenizerFast as Tokenizer

from training.data import batches
from training.reward_head import load_with_head, prefix_logits
from training.safety import process
from training.safety.figures import mean_interval
from training.safety.harmlessness_data import Pair
from training.safety.linear import bag_of_words

NUM_EPOCHS, BATCH_SIZE, LR, DROPOUT = 2, 16, 0.002, 0.2
CONTEXT_LEN, ANSWER_LEN = 32, 64  # tokens: the end of the context, the beginning of the answer
PREFIX_LENS = (16, 32)


class EncodedPair:
    """Ids of both sides: `[bos] context answer [eos]`.

    Attributes:
        sides: Ids with the chosen and with the rejected answer.
        start: Index of the answers' first token.
        differs: Index of the first token at which the sides differ, up to the end of the shorter.
    """

    def __init__(self, pair: Pair, tokenizer: Tokenizer) -> None:
        def ids(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False))

        head = [tokenizer.bos_token_id, *ids(pair.context)[-CONTEXT_LEN:]]
        answers = [[*ids(a), tokenizer.eos_token_id][:ANSWER_LEN] for a in _sides(pair)]
        self.sides = [head + answer for answer in answers]
        self.start = len(head)
        shorter = min(map(len, answers))
        unequal = (i for i in range(shorter) if answers[0][i] != answers[1][i])
        self.differs = self.start + next(unequal, shorter)


def _sides(pair: Pair) -> tuple[str, str]:
    return pair.chosen, pair.rejected


def train(
    model: LlamaForSequenceClassification,
    pairs: Sequence[EncodedPair],
    *,
    num_steps: int,
    seed: int,
    log: Callable[[str], None],
) -> float:
    """Train by Bradley-Terry on ends and on beginnings of equal length; return the final loss.

    Half the weight is on the ends of the answers, half on all beginnings of equal length that
    differ, because the reward has to judge unfinished answers.
    """
    torch.manual_seed(seed)

    def loss(picked: Sequence[int]) -> torch.Tensor:
        chosen = [pairs[index] for index in picked]
        rows = [side for pair in chosen for side in pair.sides]
        values = prefix_logits(model, rows, dropout=DROPOUT)
        losses = []
        for number, pair in enumerate(chosen):
            good, bad = values[2 * number], values[2 * number + 1]
            ends = [len(side) for side in pair.sides]
            margin = good[ends[0] - 1] - bad[ends[1] - 1]
            both = slice(pair.differs, min(ends))
            on_the_way = functional.softplus(bad[both] - good[both]).mean()
            losses.append((functional.softplus(-margin) + on_the_way) / 2)
        return torch.stack(losses).mean()

    lengths = [pair.sides[0] + pair.sides[1] for pair in pairs]
    picks = batches(lengths, batch_size=BATCH_SIZE, num_steps=num_steps, seed=seed)
    return process.fit(model, [lambda picked=p: loss(picked) for p in picks], lr=LR, log=log)


def verdicts(
    model: LlamaForSequenceClassification, pairs: Sequence[EncodedPair]
) -> dict[str, np.ndarray]:
    """Return where the model prefers the chosen answer: 1, 0, or 0.5 on ties; NaN if too short.

    Returns:
        By number of answer tokens, and for whole answers (cut at `ANSWER_LEN` tokens) under "end":
        `(len(pairs),)`.
    """
    values = process.all_logits(model, [side for pair in pairs for side in pair.sides])
    found: dict[str, list[float]] = {str(length): [] for length in (*PREFIX_LENS, "end")}
    for number, pair in enumerate(pairs):
        good, bad = values[2 * number], values[2 * number + 1]
        found["end"].append(_preferred(good[-1] - bad[-1]))
        for length in PREFIX_LENS:
            last = pair.start + length - 1
            readable = last < min(len(good), len(bad)) and last >= pair.differs
            verdict = _preferred(good[last] - bad[last]) if readable else float("nan")
            found[str(length)].append(verdict)
    return {name: np.array(values) for name, values in found.items()}


def linear_verdicts(training: Sequence[Pair], held_out: Sequence[Pair]) -> np.ndarray:
    """Return verdicts of a linear model on the difference of the answers' bags of words."""
    features = bag_of_words()
    features.fit([answer for pair in training for answer in _sides(pair)])

    def differences(pairs: Sequence[Pair]) -> Any:
        good, bad = (features.transform([_sides(p)[i] for p in pairs]) for i in (0, 1))
        return good - bad

    rows = differences(training)
    labels = np.repeat([1, 0], len(training))
    model = LogisticRegression(C=1, fit_intercept=False, max_iter=1000)
    model.fit(vstack([rows, -rows]), labels)
    return np.array([_preferred(m) for m in model.decision_function(differences(held_out))])


def shorter_verdicts(pairs: Sequence[Pair]) -> np.ndarray:
    """Return verdicts of the rule that the shorter answer is less harmful."""
    return np.array([_preferred(len(pair.rejected) - len(pair.chosen)) for pair in pairs])


def _preferred(margin: float) -> float:
    return 0.5 + 0.5 * float(np.sign(margin))


def cross_validate(
    dealt: Sequence[Sequence[Pair]],
    lm_directory: Path,
    *,
    test_folds: Sequence[int],
    seed: int,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Train on all folds but one, for each test fold in turn, and count the right verdicts.

    Returns:
        For each model, its accuracy over all pairs of the test folds, `[value, low, high]` with a
        95% bootstrap interval, and the reward's lead over the linear model.
    """
    right: dict[str, list[np.ndarray]] = {}
    for fold in test_folds:
        training = [pair for number, pairs in enumerate(dealt) if number != fold for pair in pairs]
        model, tokenizer = fitted(training, lm_directory, seed=seed, log=log)
        held_out = dealt[fold]
        found = verdicts(model, [EncodedPair(pair, tokenizer) for pair in held_out])
        for length, values in found.items():
            right.setdefault(f"reward, {length}", []).append(values)
        right.setdefault("bag of words, end", []).append(linear_verdicts(training, held_out))
        right.setdefault("shorter answer", []).append(shorter_verdicts(held_out))
        log(
            f"fold {fold}: " + str({name: round(np.nanmean(v[-1]), 3) for name, v in right.items()})
        )
    joined = {name: np.concatenate(values) for name, values in right.items()}
    joined["reward - bag of words, end"] = joined["reward, end"] - joined["bag of words, end"]
    figures: dict[str, Any] = {"test_folds": list(test_folds), "pairs": [len(f) for f in dealt]}
    for name, values in joined.items():
        known = values[~np.isnan(values)]
        figures[name] = {"num": len(known), "accuracy": mean_interval(known)}
    return figures


def fitted(
    pairs: Sequence[Pair], lm_directory: Path, *, seed: int, log: Callable[[str], None]
) -> tuple[LlamaForSequenceClassification, Tokenizer]:
    """Return a reward trained on `pairs`, and its tokenizer."""
    model, tokenizer = load_with_head(lm_directory)
    encoded = [EncodedPair(pair, tokenizer) for pair in pairs]
    encoded = [e for e in encoded if e.differs < min(map(len, e.sides))]  # cut where they differ
    num_steps = NUM_EPOCHS * len(encoded) // BATCH_SIZE
    train(model, encoded, num_steps=num_steps, seed=seed, log=log)
    return model, tokenizer
