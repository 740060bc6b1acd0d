"""Read the IMDB reviews (Maas et al. 2011), and make batches of token ids from them."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from stars_engine.kv_cache.grouping import split_where

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100  # the target index that cross_entropy skips

Row = Sequence[int]
Item = TypeVar("Item")


def read_reviews(path: Path) -> list[str]:
    """Return the review texts of one `.jsonl.gz` file, with newlines for HTML line breaks."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = (json.loads(line)["text"] for line in file)
        return [re.sub(r"\s*<br\s*/?>\s*(<br\s*/?>\s*)*", "\n", text).strip() for text in texts]


def training_reviews(imdb: Path) -> list[str]:
    """Return the texts of all training reviews, with and without labels, file by file."""
    names = ("train_pos", "train_neg", "train_unsup")
    return [text for name in names for text in read_reviews(imdb / f"{name}.jsonl.gz")]


def encode_rows(
    texts: Sequence[str], tokenizer: Tokenizer, *, bos_id: int, eos_id: int
) -> list[list[int]]:
    """Encode each text whole: `[bos] text [eos]`."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[bos_id, *encoding.ids, eos_id] for encoding in encodings]


def epochs(rows: Sequence[Row], *, num_tokens: int, seed: int) -> Iterator[list[int]]:
    """Yield row indices in endless groups: `epoch` after `epoch`, each in another order."""
    for number in count():
        yield from epoch(rows, num_tokens=num_tokens, seed=seed + number)


def epoch(rows: Sequence[Row], *, num_tokens: int, seed: int) -> Iterator[list[int]]:
    """Yield each row index once, in groups of similar length: `num_tokens` with padding at most."""

    def within_budget(pool: list[int]) -> Iterator[list[int]]:
        return split_where(pool, lambda group, i: (len(group) + 1) * len(rows[i]) > num_tokens)

    yield from _groups(rows, random.Random(seed), 2000, within_budget)


def batches(
    rows: Sequence[Row], *, batch_size: int, num_steps: int, seed: int
) -> Iterator[list[int]]:
    """Yield `num_steps` groups of `batch_size` row indices: epoch after epoch, like lengths."""

    def of_equal_size(pool: list[int]) -> Iterator[list[int]]:
        return (group for group in chunks(pool, batch_size) if len(group) == batch_size)

    rng = random.Random(seed)
    steps_left = num_steps
    while steps_left > 0:
        groups = _groups(rows, rng, 50 * batch_size, of_equal_size)
        yield from groups[:steps_left]
        steps_left -= len(groups)


def _groups(
    rows: Sequence[Row],
    rng: random.Random,
    pool_size: int,
    cut: Callable[[list[int]], Iterable[list[int]]],
) -> list[list[int]]:
    """Sort by length within pools, cut and shuffle; padding stays low and the order random."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    pools = (sorted(pool, key=lambda i: len(rows[i])) for pool in chunks(order, pool_size))
    groups = [group for pool in pools for group in cut(pool)]
    rng.shuffle(groups)
    return groups


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items; the last one may be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def pad(rows: Sequence[Row], *, value: int) -> torch.Tensor:
    """Right-pad rows of ids to one `(num_rows, max_len)` tensor."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
