"""Perplexity of answers under a language model, given their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stars_engine.config import StarsConfig, TransformersModel
from stars_engine.errors import ModelLoadError, needs_extra

_BATCH = 32


class Likelihood:
    """The language model of a config, unchanged: temperature 1, all tokens.

    The text of each answer is encoded again, so that arms of models with other tokenizers are
    measured alike.

    Args:
        config: Its language model, loaded at the first use, and how it reads prompts.
    """

    def __init__(self, config: StarsConfig) -> None:
        self._config = config
        self._loaded: tuple[Any, Any] | None = None

    def nats(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """Return, for each (prompt, answer), the negative log-likelihood and the tokens.

        An empty answer has no tokens.
        """
        with needs_extra("local"):
            import torch  # noqa: PLC0415

            from stars_engine.chat.prompts import resolve_prompt  # noqa: PLC0415
        model, codec = self._load()
        rows = []
        for prompt, answer in pairs:
            resolved = resolve_prompt(
                prompt,
                codec,
                prompt_format=self._config.prompt_format,
                template_kwargs=self._config.chat_template_kwargs,
            )
            rows.append((list(resolved.token_ids), codec.encode_continuation(answer)))
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]) + len(rows[row][1]))
        found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                some = order[start : start + _BATCH]
                values = _nats(model, [rows[row] for row in some])
                for row, value in zip(some, values, strict=True):
                    found[row] = (value, len(rows[row][1]))
        return found

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            with needs_extra("local"):
                from transformers import AutoModelForCausalLM  # noqa: PLC0415

                from stars_engine.loading.models import load_model, load_tokenizer  # noqa: PLC0415
                from stars_engine.tokenization.codec import Codec  # noqa: PLC0415
            config = self._config.model
            if not isinstance(config, TransformersModel):
                raise ModelLoadError(
                    f"perplexity needs the weights of {config.shown_name} in this process. Hint: "
                    "set the perplexity model to a TransformersModel"
                )
            model = load_model(config, AutoModelForCausalLM)
            self._loaded = model, Codec(load_tokenizer(config))
        return self._loaded


def perplexity(nats: Sequence[tuple[float, int]]) -> float:
    """Return the perplexity of answers together; nan if they have no tokens."""
    total, num_tokens = np.sum(np.array(nats, dtype=float).reshape(-1, 2), axis=0)
    return float(np.exp(total / num_tokens)) if num_tokens else float("nan")


def _nats(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Return the negative log-likelihood of the second part of each row after the first."""
    import torch  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    device = model.get_input_embeddings().weight.device
    width = max(len(before) + len(after) for before, after in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, -100)
    for line, (before, after) in enumerate(rows):
        start, end = len(before), len(before) + len(after)
        ids[line, :end] = torch.tensor([*before, *after], dtype=torch.long)
        mask[line, :end] = 1
        targets[line, start:end] = ids[line, start:end]
    ids, mask, targets = ids.to(device), mask.to(device), targets.to(device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(
        logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100, reduction="none"
    )
    return [float(value) for value in losses.view(len(rows), -1).sum(1)]
