"""One logit after every token, on the body of a language model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from training.data import Row, pad


def with_head(language_model: LlamaForCausalLM) -> LlamaForSequenceClassification:
    """Return a classifier of one logit with the language model's body and a head of zeros."""
    values = language_model.config.to_dict()
    for name in ("architectures", "id2label", "label2id"):  # of another head
        values.pop(name, None)
    model = LlamaForSequenceClassification(
        language_model.config.__class__(**{**values, "num_labels": 1})
    )
    model.model.load_state_dict(language_model.model.state_dict())
    nn.init.zeros_(model.score.weight)
    return model


def load_with_head(
    lm_directory: Path,
) -> tuple[LlamaForSequenceClassification, PreTrainedTokenizerFast]:
    """Return a classifier with the body of the language model in a directory, and its tokenizer."""
    language_model = LlamaForCausalLM.from_pretrained(lm_directory, dtype=torch.float32)
    return with_head(language_model), AutoTokenizer.from_pretrained(lm_directory)


def prefix_logits(
    model: LlamaForSequenceClassification,
    rows: Sequence[Row],
    *,
    body: Callable[..., Any] | None = None,
    dropout: float = 0.0,
    word_dropout: float = 0.0,
) -> torch.Tensor:
    """The logit after each token of each row: `(num_rows, max_len)`.

    Args:
        model: The classifier.
        rows: Token ids; shorter rows are padded on the right, which causal attention never sees.
        body: What stands for `model.model`, a compiled one for instance.
        dropout: On embeddings and last states; above 0 in training only.
        word_dropout: Share of tokens whose embedding is left out whole, so that no verdict hangs on
            one word (Iyyer et al. 2015); above 0 in training only.
    """
    embedded = model.model.embed_tokens(pad(rows, value=0))
    kept = functional.dropout(torch.ones(embedded.shape[:2]), word_dropout, word_dropout > 0)
    embedded = embedded * kept[..., None]
    embedded = functional.dropout(embedded, dropout, training=dropout > 0)
    body = model.model if body is None else body
    hidden = body(inputs_embeds=embedded, use_cache=False).last_hidden_state
    values: torch.Tensor = model.score(functional.dropout(hidden, dropout, training=dropout > 0))
    return values[..., 0]


class Weights(NamedTuple):
    """How much the prefixes of a row count in the loss.

    Attributes:
        rise: Tokens over which the weight grows from 0: the first ones cannot tell.
        fall: Tokens after which it has fallen to a half, so that beginnings, which are few, count
            as well as what comes after; None if it stays.
        last: Weight of the row's last prefix beside its own: the verdict on all of it.
    """

    rise: int
    fall: int | None = None
    last: float = 0.0

    def of(self, lengths: torch.Tensor, width: int) -> torch.Tensor:
        """Return `(rows, width)` for rows of some lengths; 0 beyond."""
        position = torch.arange(width)
        weights = (position / self.rise).clamp(max=1)
        if self.fall is not None:
            weights = weights / (1 + position / self.fall)
        inside = (position < lengths[:, None]) * weights
        return inside + self.last * (position == lengths[:, None] - 1)


def prefix_loss(
    logits: torch.Tensor, targets: Sequence[float], rows: Sequence[Row], weights: Weights
) -> tuple[torch.Tensor, float]:
    """Weighted cross-entropy summed over all prefixes of all rows, and the sum of the weights.

    Args:
        logits: Of `prefix_logits`.
        targets: Probability of the positive label, of each row.
        rows: Token ids, for their lengths.
        weights: Of the prefixes.
    """
    wanted = torch.tensor(targets)[:, None].expand_as(logits)
    each = weights.of(torch.tensor([len(row) for row in rows]), logits.shape[1])
    losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (losses * each).sum(), each.sum().item()
