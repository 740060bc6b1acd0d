"""Two ways to continue committed prefixes: with a KV cache, and by reading everything again.

A `Prefix` is immutable in all but `commit`: drafting works on copies, so a rejected candidate
leaves no trace that would have to be undone.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import DynamicCache

KeysValues = tuple[torch.Tensor, torch.Tensor]  # each (1, heads, num_tokens, head_dim)


@dataclass(slots=True)
class Prefix:
    """One rollout's committed tokens.

    Attributes:
        token_ids: Prompt and accepted segments.
        num_prompt_tokens: How many of them are the prompt.
        next_logits: `(vocab,)`, the model's logits after the last of them.
        layers: Keys and values of all of them by layer; empty for a decoder without a cache.
    """

    token_ids: list[int]
    num_prompt_tokens: int
    next_logits: torch.Tensor
    layers: list[KeysValues] = field(default_factory=list)


class Branches(Protocol):
    """Candidate rows growing beside each other from their prefixes."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to each row, `(rows,)`; return the logits after it, `(rows, vocab)`."""
        ...


class Decoder(Protocol):
    """Reads prefixes and branches off candidates."""

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """Read prompts."""
        ...

    def extend(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """Append accepted tokens to prefixes."""
        ...

    def branch(self, rows: Sequence[Prefix]) -> Branches:
        """Begin one candidate row on each of the given prefixes (repeats are separate rows)."""
        ...


class CachedDecoder:
    """Keeps every prefix's keys and values; only new tokens are read.

    Prefixes of different lengths share a batch by padding on the left, with a mask and explicit
    positions.

    Args:
        model: A causal language model of transformers.
        context_len: Positions it has; None for no limit.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self._forward = _Forward(model)
        self._context_len = context_len

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """See `Decoder`."""
        prefixes = [Prefix([], len(prompt), torch.empty(0)) for prompt in prompts]
        self.extend(list(zip(prefixes, prompts, strict=True)))
        return prefixes

    def extend(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """See `Decoder`."""
        by_length: dict[int, list[tuple[Prefix, Sequence[int]]]] = defaultdict(list)
        for prefix, ids in kept:
            by_length[len(ids)].append((prefix, ids))
        for group in by_length.values():
            rows = self._branches([prefix for prefix, _ in group])
            new = torch.tensor([list(ids) for _, ids in group], device=self._forward.device)
            logits = rows.read(new)
            for row, (prefix, new_ids) in enumerate(group):
                prefix.token_ids = [*prefix.token_ids, *new_ids]
                prefix.next_logits = logits[row]
                prefix.layers = rows.row_layers(row, len(prefix.token_ids))

    def branch(self, rows: Sequence[Prefix]) -> Branches:
        """See `Decoder`."""
        return self._branches(rows)

    def _branches(self, rows: Sequence[Prefix]) -> CachedBranches:
        return CachedBranches(self._forward, rows, self._context_len)


class CachedBranches:
    """Rows with a cache of their own, copied from the prefixes.

    A row that has ended runs on beside the others. Beyond the context it stays at the last
    position, and its tokens there are masked out: models count positions by their ids or by the
    mask, and learned positions have no row for more.
    """

    def __init__(
        self, forward: _Forward, prefixes: Sequence[Prefix], context_len: int | None = None
    ) -> None:
        self._forward, self._context_len = forward, context_len
        lengths = torch.tensor([len(p.token_ids) for p in prefixes], device=forward.device)
        width = int(lengths.max())
        self._next_position = lengths  # (rows,)
        columns = torch.arange(width, device=forward.device)
        self._mask = (columns >= width - lengths[:, None]).long()  # (rows, width)
        self._cache = DynamicCache()
        for index, _ in enumerate(next((p.layers for p in prefixes if p.layers), [])):
            keys, values = (
                torch.cat([_pad_left(p.layers[index][part], width) for p in prefixes])
                for part in (0, 1)
            )
            self._cache.update(keys, values, index)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Branches`."""
        return self.read(tokens[:, None])

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Append `(rows, count)` ids; return the logits after the last, `(rows, vocab)`."""
        rows, count = ids.shape
        steps = torch.arange(count, device=ids.device)
        positions = self._next_position[:, None] + steps
        self._next_position = self._next_position + count
        new_mask = self._mask.new_ones(rows, count)
        if self._context_len is not None:
            new_mask = (positions < self._context_len).long()
            positions = positions.clamp(max=self._context_len - 1)
        self._mask = torch.cat([self._mask, new_mask], dim=1)
        return self._forward(ids, self._mask, positions, self._cache)

    def row_layers(self, row: int, length: int) -> list[KeysValues]:
        """Copy out the last `length` columns of one row."""
        layers: list[Any] = self._cache.layers
        return [
            (
                layer.keys[row : row + 1, :, -length:].clone(),
                layer.values[row : row + 1, :, -length:].clone(),
            )
            for layer in layers
        ]


class FullDecoder:
    """Keeps nothing: reads each row whole at each step. For models without a KV cache of ours.

    Rows of one length share a batch, so nothing is padded.

    Args:
        model: A causal language model of transformers.
        context_len: Tokens it reads at most; None for no limit. A row that has ended runs on beside
            the others only so far.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self._forward = _Forward(model)
        self.context_len = context_len

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """See `Decoder`."""
        logits = self.read([list(prompt) for prompt in prompts])
        return [
            Prefix(list(prompt), len(prompt), logits[row]) for row, prompt in enumerate(prompts)
        ]

    def extend(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """See `Decoder`."""
        logits = self.read([[*prefix.token_ids, *ids] for prefix, ids in kept])
        for row, (prefix, ids) in enumerate(kept):
            prefix.token_ids = [*prefix.token_ids, *ids]
            prefix.next_logits = logits[row]

    def branch(self, rows: Sequence[Prefix]) -> Branches:
        """See `Decoder`."""
        return _FullBranches(self, [list(prefix.token_ids) for prefix in rows])

    def read(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Return the logits after each whole row, `(rows, vocab)`."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            by_length[len(row)].append(index)
        logits: dict[int, torch.Tensor] = {}
        for indices in by_length.values():
            ids = torch.tensor([rows[index] for index in indices], device=self._forward.device)
            logits |= zip(indices, self._forward(ids), strict=True)
        return torch.stack([logits[index] for index in range(len(rows))])


class _FullBranches:
    def __init__(self, decoder: FullDecoder, rows: list[list[int]]) -> None:
        self._decoder, self._rows = decoder, rows

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        limit = self._decoder.context_len
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            if limit is None or len(row) < limit:
                row.append(token)
        return self._decoder.read(self._rows)


class _Forward:
    """One call of the model for the logits after the last token, with what it understands."""

    def __init__(self, model: Any) -> None:
        self._model = model
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        self._accepts = set(inspect.signature(base.forward).parameters)
        self.device = model.get_input_embeddings().weight.device

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> torch.Tensor:
        options: dict[str, Any] = {"logits_to_keep": 1, "position_ids": positions}
        options = {
            name: value
            for name, value in options.items()
            if value is not None and name in self._accepts
        }
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def _pad_left(states: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
