"""Hidden states of samples, at some positions: what heads are fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stars_engine.guides.samples import JudgedAnswer, ProgressCallback
from stars_engine.hidden_states.probes import GivesHiddenStates

_ROWS = 8  # in one pass
_MAX_BYTES = 1 << 30  # of all states


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states at positions of samples.

    Attributes:
        samples: `(rows,)`, index of the sample.
        num_tokens: `(rows,)`, tokens of the answer so far.
        by_layer: `(rows, hidden_size)` by (layer, pooling), where pooling is "last" or "mean".
    """

    samples: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    by_layer: dict[tuple[int, str], torch.Tensor]


def read_states(
    model: GivesHiddenStates,
    samples: Sequence[JudgedAnswer],
    layers: Sequence[int],
    positions: Sequence[int],
    *,
    seed: int,
    progress: ProgressCallback,
) -> States:
    """Read the states of samples by plain passes.

    Each answer gives the given positions, its end, and some positions drawn at random, so that all
    positions occur.

    Args:
        model: The language model.
        samples: The answers.
        layers: Indices of hidden states.
        positions: Positions that are reported later.
        seed: Seed of the other positions.
        progress: Called with "reading", samples done, and all samples.
    """
    generator = np.random.default_rng(seed)
    bytes_per_row = 4 * 2 * len(layers) * model.hidden_size
    most = max(len(positions) + 1, _MAX_BYTES // (bytes_per_row * max(1, len(samples))))
    chosen = [_positions(len(s.token_ids), positions, min(most, 24), generator) for s in samples]
    # Answers of similar length share a pass.
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].token_ids))
    parts: dict[tuple[int, str], list[torch.Tensor]] = {
        (layer, pooling): [] for layer in layers for pooling in ("last", "mean")
    }
    for first in range(0, len(order), _ROWS):
        progress("reading", first, len(order))
        some = order[first : first + _ROWS]
        rows = [[*samples[index].prompt_ids, *samples[index].token_ids] for index in some]
        for index, states in zip(some, model.read_states(rows, layers), strict=True):
            own = states[len(samples[index].prompt_ids) - 1 :].float().cpu()
            at = torch.as_tensor(chosen[index])
            means = own.cumsum(0)[at] / (at[:, None] + 1)
            for place, layer in enumerate(layers):
                columns = slice(place * model.hidden_size, (place + 1) * model.hidden_size)
                parts[layer, "last"].append(own[at, columns])
                parts[layer, "mean"].append(means[:, columns])
    progress("reading", len(order), len(order))
    return States(
        np.concatenate([np.full(len(chosen[index]), index) for index in order]),
        np.concatenate([chosen[index] for index in order]),
        {key: torch.cat(part) for key, part in parts.items()},
    )


def _positions(
    length: int, wanted: Sequence[int], most: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    fixed = {size for size in wanted if size < length} | {length}
    others = [size for size in range(length) if size not in fixed]
    count = min(len(others), max(0, most - len(fixed)))
    drawn = generator.choice(others, size=count, replace=False).tolist() if count else []
    return np.array(sorted({*fixed, *drawn}), dtype=np.int64)
