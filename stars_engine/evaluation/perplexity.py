"""Perplexity of answers under a language model, given their prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stars_engine.calibration.fingerprints import model_fingerprints
from stars_engine.config import StarsConfig, TransformersModel
from stars_engine.errors import ModelLoadError, needs_extra
from stars_engine.evaluation.score_store import ScoreStore, score_key
from stars_engine.evaluation.store import identity

_BATCH = 32
Pair = tuple[str, str]  # prompt, answer


class Likelihood:
    """The language model of a config, unchanged: temperature 1, all tokens.

    The text of each answer is encoded again, so that arms of models with other tokenizers are
    measured alike. Likelihoods are stored, so that each is computed once.

    Args:
        config: Its language model, loaded at the first use, and how it reads prompts.
        store: The likelihoods so far.
    """

    def __init__(self, config: StarsConfig, store: ScoreStore) -> None:
        self._config, self._store = config, store
        self._loaded: tuple[Any, Any] | None = None

    def nats(
        self,
        pairs: Sequence[Pair],
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> list[tuple[float, int]]:
        """Return, for each (prompt, answer), the negative log-likelihood and the tokens.

        An empty answer has no tokens.

        Args:
            pairs: The prompts with their answers.
            progress: Called with the answers done and in total, if any are missing.
        """
        model = self._identity()
        keys = [score_key(model, *pair) for pair in pairs]
        missing = {
            key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._store
        }
        if missing:
            progress(0, len(missing))
            self._measure(missing, progress)
        return [(float(nats), int(count)) for nats, count in (self._store[key] for key in keys)]

    def _identity(self) -> str:
        """Return text that changes whenever a likelihood would."""
        config = self._config
        return json.dumps(
            [
                "nats",
                identity(config.model),
                model_fingerprints(config)["model"],
                config.prompt_format,
                config.chat_template_kwargs,
            ],
            sort_keys=True,
        )

    def _measure(self, pairs: dict[str, Pair], progress: Callable[[int, int], None]) -> None:
        """Compute and store likelihoods by their keys, answers of similar lengths together."""
        with needs_extra("local"):
            import torch  # noqa: PLC0415

            from stars_engine.chat.prompts import resolve_prompt  # noqa: PLC0415
        model, codec = self._load()
        rows: dict[str, tuple[list[int], list[int]]] = {}
        for key, (prompt, answer) in pairs.items():
            resolved = resolve_prompt(
                prompt,
                codec,
                prompt_format=self._config.prompt_format,
                template_kwargs=self._config.chat_template_kwargs,
            )
            rows[key] = (list(resolved.token_ids), codec.encode_continuation(answer))
        order = sorted(rows, key=lambda key: len(rows[key][0]) + len(rows[key][1]))
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                some = order[start : start + _BATCH]
                values = _nats(model, [rows[key] for key in some])
                self._store.add(
                    {
                        key: (value, len(rows[key][1]))
                        for key, value in zip(some, values, strict=True)
                    }
                )
                progress(start + len(some), len(order))

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
