"""Features of the tokens of a batch of drafts, read while they are drafted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import torch

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.decoders import ComputedPrefix, Decoder
from stars_engine.errors import GenerationError, ModelLoadError, describe_error
from stars_engine.hidden_states.probes import Probe, ProbeSet
from stars_engine.kv_cache.forward_pass import lock_of


class ProbedModel:
    """The probes of a model: attached by rewards, computed as long as their rewards exist.

    Args:
        model: A causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config.get_text_config()
        self.num_layers = int(config.num_hidden_layers)
        self.hidden_size = int(config.hidden_size)
        self._lock = lock_of(model)
        self._attached: WeakSet[Probe] = WeakSet()
        self._decoder: Decoder | None = None
        self.current: ProbeSet | None = None

    def attach(self, probe: Probe) -> None:
        """See `GivesHiddenStates`."""
        name = type(self._model).__name__
        unknown = [layer for layer in probe.layers if not 0 <= layer <= self.num_layers]
        if unknown:
            raise ModelLoadError(
                f"layers={unknown} are not among the hidden states of {name}, 0 to "
                f"{self.num_layers}. Hint: use the language model that the head was fitted to"
            )
        width = len(probe.layers) * self.hidden_size
        if probe.weight.shape[1] != width:
            raise ModelLoadError(
                f"the head reads {probe.weight.shape[1]} numbers per token, and {len(probe.layers)}"
                f" layers of {name} have {width}. Hint: use the language model that the head was "
                "fitted to"
            )
        self.read_states([[0]], probe.layers)
        self._attached.add(probe)

    @torch.inference_mode()
    def read_states(
        self, rows: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> list[torch.Tensor]:
        """See `GivesHiddenStates`. Rows are one batch, padded on the right.

        Raises:
            ModelLoadError: The model returns no hidden states.
        """
        device = self._model.get_input_embeddings().weight.device
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = (torch.arange(width, device=device) < lengths[:, None]).long()
        options: dict[str, Any] = {} if int(mask.min()) else {"attention_mask": mask}
        name = type(self._model).__name__
        try:
            # Those layers, or all of them in older versions of transformers.
            options |= {"output_hidden_states": sorted(set(layers)), "use_cache": False}
            with self._lock.lock:
                output = self._model(input_ids=ids, **options)
            chosen = [output.hidden_states[layer] for layer in layers]
            states = torch.cat([part.to(device) for part in chosen], dim=-1)
        except Exception as error:
            raise _no_states(name, describe_error(error)) from error
        expected = (*ids.shape, len(layers) * self.hidden_size)
        if states.shape != expected:
            raise _no_states(name, f"their shape is {tuple(states.shape)}, not {expected}")
        return [each[: len(row)] for each, row in zip(states, rows, strict=True)]

    def apply(self, decoder: Decoder, device: torch.device) -> None:
        """Let a decoder compute the probes that exist now."""
        probes = list(self._attached)
        is_known = not probes if self.current is None else self.current.consists_of(probes)
        if is_known and (decoder is self._decoder or self.current is None):
            return
        if not is_known:
            self.current = ProbeSet(probes, device) if probes else None
        self._decoder = decoder
        decoder.set_probes(self.current)


class FeatureRecorder:
    """Records the features of a batch of drafts, step by step.

    Args:
        probes: All probes that are computed.
        prefixes: The prefix of each row.
        num_tokens: Maximum tokens of a row.
    """

    def __init__(
        self, probes: ProbeSet, prefixes: Sequence[ComputedPrefix], num_tokens: int
    ) -> None:
        self._columns = probes.columns
        first = torch.stack([_known(prefix.last_features) for prefix in prefixes])
        self._rows = first.new_zeros(len(prefixes), 1 + num_tokens, first.shape[1])
        self._rows[:, 0] = first
        self._num_noted = 1

    def note(self, features: torch.Tensor | None) -> None:
        """Note `(rows, features)` of the next token of each row."""
        self._rows[:, self._num_noted] = _known(features)
        self._num_noted += 1

    def add_to(
        self, drafts: Sequence[Draft | GenerationError], requests: Sequence[DraftRequest]
    ) -> list[Draft | GenerationError]:
        """Return drafts with the features that their requests asked for."""
        rows = self._rows[:, : self._num_noted].cpu().numpy()
        found: list[Draft | GenerationError] = []
        for draft, request, values in zip(drafts, requests, rows, strict=True):
            if isinstance(draft, Draft) and request.probes:
                size = 1 + len(draft.token_ids) + len(draft.lookahead_ids)
                features = {
                    probe: values[:size, self._columns[probe]].copy() for probe in request.probes
                }
                draft = replace(draft, features=features)  # noqa: PLW2901 - the same draft
            found.append(draft)
        return found


def _known(features: torch.Tensor | None) -> torch.Tensor:
    assert features is not None, "the decoder has computed no features"
    return features


def _no_states(name: str, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"{name} returns no hidden states of its layers ({reason}). Hint: use another kind of "
        "reward, or a model that supports output_hidden_states"
    )
