"""A head that gives one logit after every token, on the body of a language model."""

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
    """Return a classifier with the language model's body and a head of zeros for one logit."""
    values = language_model.config.to_dict()
    for name in ("architectures", "id2label", "label2id"):  # these describe another head
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
    """Return the logit after each token of each row: `(num_rows, max_len)`.

    Args:
        model: The classifier.
        rows: Token ids; shorter rows are padded on the right, which causal attention never sees.
        body: Replaces `model.model`, for example by a compiled one.
        dropout: Applied to embeddings and last states; above 0 only in training.
        word_dropout: Share of tokens whose embedding is left out, so that no verdict depends on
            one word (Iyyer et al. 2015); above 0 only in training.
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
    """Weights of the prefixes of a row in the loss.

    Attributes:
        rise: Tokens over which the weight grows from 0, since the first ones show little.
        fall: Tokens after which the weight has fallen to a half, so that beginnings, which are
            few, count as much as later prefixes; None if it stays.
        last: Additional weight of the row's last prefix: the verdict on the whole row.
    """

    rise: int
    fall: int | None = None
    last: float = 0.0

    def of(self, lengths: torch.Tensor, width: int) -> torch.Tensor:
        """Return weights `(rows, width)` for rows of some lengths; 0 beyond their ends."""
        position = torch.arange(width)
        weights = (position / self.rise).clamp(max=1)
        if self.fall is not None:
            weights = weights / (1 + position / self.fall)
        inside = (position < lengths[:, None]) * weights
        return inside + self.last * (position == lengths[:, None] - 1)


def prefix_loss(
    logits: torch.Tensor, targets: Sequence[float], rows: Sequence[Row], weights: Weights
) -> tuple[torch.Tensor, float]:
    """Return the weighted cross-entropy over all prefixes of all rows, and the sum of the weights.

    Args:
        logits: Logits of `prefix_logits`.
        targets: Probability of the positive label, for each row.
        rows: Token ids, for their lengths.
        weights: Weights of the prefixes.
    """
    wanted = torch.tensor(targets)[:, None].expand_as(logits)
    each = weights.of(torch.tensor([len(row) for row in rows]), logits.shape[1])
    losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (losses * each).sum(), each.sum().item()
