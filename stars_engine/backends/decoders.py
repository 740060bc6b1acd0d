"""What a decoder is: it computes prefixes, and branches candidate rows off them."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import torch
from transformers import Cache

from stars_engine.hidden_states.probes import ProbeSet, StepOutput


class ComputedPrefix(Protocol):
    """A prefix of which a decoder keeps what its candidates need, as long as it is held."""

    @property
    def last_output(self) -> torch.Tensor:
        """The logits after the last token, `(vocab,)`."""

    @property
    def last_features(self) -> torch.Tensor | None:
        """The features of the last token, `(features,)`; None without probes."""


class Branches(Protocol):
    """Candidate rows, decoded together."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to each row, `(rows,)`; return the logits after it, `(rows, vocab)`."""

    @property
    def features(self) -> torch.Tensor | None:
        """The features of the token of the last step, `(rows, features)`; None without probes.

        They are overwritten by the next step.
        """

    def keep_last(self) -> None:
        """Let a row that is accepted as it is now continue without computing its last token."""
        return


class Decoder(Protocol):
    """Computes prefixes and branches candidates off them.

    Branching leaves a prefix as it is, so rejecting a candidate takes no action.
    """

    def compute(self, prefixes: Sequence[tuple[Sequence[int], Any]]) -> Sequence[ComputedPrefix]:
        """Return prefixes with all their tokens; what is known of them is not computed again.

        Args:
            prefixes: The tokens of each, and what its holder got the last time, or None.
        """

    def compute_in_parts(
        self, prefixes: Sequence[tuple[Sequence[int], Any]]
    ) -> Generator[int, None, Sequence[ComputedPrefix]]:
        """Do as `compute`; others may be computed between two parts. Most decoders have one part.

        Yields:
            How many parts are left, between two parts.
        """
        yield from ()
        return self.compute(prefixes)

    def set_probes(self, probes: ProbeSet | None) -> None:
        """Compute other features from now on. What was computed without them is forgotten."""

    def branch(self, prefixes: Sequence[Any], num_tokens: int) -> Branches:
        """Start a candidate row on each of the given prefixes; repeats are separate rows.

        Args:
            prefixes: The prefix of each row, as computed.
            num_tokens: Maximum steps.
        """

    @property
    def num_resets(self) -> int:
        """How often all that was computed was forgotten, because weights or probes changed."""
        return 0

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token of a prefix; 0 if nothing is kept by the token."""
        return 0

    def limit_cache(self, max_bytes: int | None) -> None:
        """Bound the memory of prefixes. Most decoders keep none that is not held."""
        return

    def free_unused(self) -> None:
        """Free what no holder needs. Most decoders keep nothing else."""
        return


class Forward:
    """Calls a model for its output after the last token, with the arguments that it understands.

    Args:
        model: A causal language model of transformers, with an adapter or without.

    Attributes:
        probes: What else is read of the last token; None for nothing.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # A PeftModel wraps one; a model that was given adapters is one itself.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepts = set(inspect.signature(base.forward).parameters)
        # Models without attention name their cache differently.
        self._cache_name = "cache_params" if "cache_params" in self._accepts else "past_key_values"
        self.config = model.config
        self.probes: ProbeSet | None = None
        self.device: torch.device = model.get_input_embeddings().weight.device

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> StepOutput:
        """Return the output after `(rows, count)` ids."""
        options: dict[str, Any] = {"logits_to_keep": 1, "position_ids": positions}
        options = {
            name: value
            for name, value in options.items()
            if value is not None and name in self._accepts
        }
        if cache is not None:
            options[self._cache_name] = cache
        if self.probes is not None:
            options["output_hidden_states"] = self.probes.layers  # those, or all of them
        output = self._model(
            input_ids=ids, attention_mask=mask, use_cache=cache is not None, **options
        )
        features = None if self.probes is None else self.probes(output.hidden_states)
        return StepOutput(output.logits[:, -1], features)
