"""Read the IMDB reviews (Maas et al. 2011) and turn them into batches of token ids."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100  # the target index that cross_entropy skips

Row = Sequence[int]
Item = TypeVar("Item")


def read_reviews(path: Path) -> list[str]:
    """Return the review texts of one `.jsonl.gz` file, HTML line breaks turned into newlines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = (json.loads(line)["text"] for line in file)
        return [re.sub(r"\s*<br\s*/?>\s*(<br\s*/?>\s*)*", "\n", text).strip() for text in texts]


def training_reviews(imdb: Path) -> list[str]:
    """Return the texts of all training reviews, labelled and not, file by file."""
    names = ("train_pos", "train_neg", "train_unsup")
    return [text for name in names for text in read_reviews(imdb / f"{name}.jsonl.gz")]


def encode_rows(
    texts: Sequence[str], tokenizer: Tokenizer, *, bos_id: int, eos_id: int
) -> list[list[int]]:
    """Encode each text whole: `[bos] text [eos]`."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[bos_id, *encoding.ids, eos_id] for encoding in encodings]


def epoch(rows: Sequence[Row], *, num_tokens: int, seed: int) -> Iterator[list[int]]:
    """Yield row indices in groups: like lengths, at most `num_tokens` with padding, each once."""
    rng = random.Random(seed)
    order = list(range(len(rows)))
    rng.shuffle(order)
    groups: list[list[int]] = []
    # Sorting inside pools keeps padding low and the order random.
    for pool in chunks(order, 2000):
        group: list[int] = []
        for index in sorted(pool, key=lambda index: len(rows[index])):
            if group and (len(group) + 1) * len(rows[index]) > num_tokens:
                groups.append(group)
                group = []
            group.append(index)
        groups.append(group)
    rng.shuffle(groups)
    yield from groups


def batches(
    rows: Sequence[Row], *, batch_size: int, num_steps: int, seed: int
) -> Iterator[list[int]]:
    """Yield `num_steps` groups of `batch_size` row indices: epoch after epoch, like lengths."""
    rng = random.Random(seed)
    steps_left = num_steps
    while steps_left > 0:
        order = list(range(len(rows)))
        rng.shuffle(order)
        groups = [
            group
            for pool in chunks(order, 50 * batch_size)
            for group in chunks(sorted(pool, key=lambda index: len(rows[index])), batch_size)
            if len(group) == batch_size
        ]
        rng.shuffle(groups)
        yield from groups[:steps_left]
        steps_left -= len(groups)


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one perhaps shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def pad(rows: Sequence[Row], *, value: int) -> torch.Tensor:
    """Right-pad rows of ids to one `(num_rows, max_len)` tensor."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
