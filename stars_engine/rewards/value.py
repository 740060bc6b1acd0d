"""The reward model of a `ValueHead`: it reads features that drafts carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stars_engine.config import ValueReward
from stars_engine.errors import ModelLoadError, RewardError
from stars_engine.hidden_states.probes import gives_hidden_states
from stars_engine.hidden_states.value_head import ValueHead
from stars_engine.loading.sources import resolve_source
from stars_engine.rewards.base import with_floor
from stars_engine.types import RewardInput, Score


class ValueRewardModel:
    """Estimates what a judge will say of an answer from the language model's hidden states.

    Inputs that no draft belongs to have no features; they are computed by a plain forward pass.

    Args:
        config: The head.
        model: The language model that drafts; it must give hidden states.

    Attributes:
        probe: What the language model computes while it drafts.

    Raises:
        ModelLoadError: There is no such head, the language model gives no hidden states, or the
            head was fitted to another model.
    """

    reads_ids = True  # a reward costs nothing per token, so short segments are the default

    def __init__(self, config: ValueReward, model: object | None) -> None:
        head = config.head
        if head is None:
            assert config.name_or_path is not None
            head = ValueHead.load(resolve_source(config.name_or_path))
        self.head: ValueHead = head
        self.name = config.name_or_path or "value head"
        self._floor = config.floor
        if not gives_hidden_states(model):
            kind = "no language model" if model is None else type(model).__name__
            raise ModelLoadError(
                f"a ValueReward reads hidden states of the language model that drafts, and "
                f"{kind} gives none. Hint: use a TransformersModel in this process, or another "
                "kind of reward"
            )
        self._model: Any = model
        self.head.check_base(model)
        self.probe = self.head.new_probe()
        model.attach(self.probe)

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        head = self.head
        shape = "linear" if len(head.weights) == 1 else f"MLP of {len(head.weights)} layers"
        where = ", ".join(map(str, head.layers))
        return {
            "class": f"value head, {shape}, {sum(w.numel() for w in head.weights):,} parameters",
            "reads": f"hidden states of layers {where} ({head.pooling}), computed by drafting",
        }

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        return [self._score(item) for item in inputs]

    def _score(self, item: RewardInput) -> Score:
        features, num_tokens = item.features.get(self.probe), 0
        if features is None:
            prompt = item.prompt.token_ids
            if not prompt:
                raise RewardError(
                    "a ValueReward reads the language model's own prompt, and this input has "
                    "neither features of a draft nor the prompt's token ids. Hint: score drafts of "
                    "an engine, or give RewardPrompt(text, token_ids)"
                )
            with torch.inference_mode():
                [states] = self._model.read_states([[*prompt, *item.token_ids]], self.probe.layers)
                features = self.probe(states[len(prompt) - 1 :]).cpu().numpy()
            num_tokens = len(prompt) + len(item.token_ids)
        return with_floor(self.head.value(features), self._floor, num_tokens=num_tokens)
