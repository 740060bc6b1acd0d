"""When memory ends: how that is told, and going on with less at a time."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

_SAYS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


@runtime_checkable
class KeepsCache(Protocol):
    """A model that keeps what it has read, for whoever asks next."""

    @property
    def bytes_per_token(self) -> int:
        """Memory of what is kept of one token; 0 if nothing is, or before anything was read."""
        ...

    def limit_cache(self, max_bytes: int | None) -> None:
        """Bound what is kept of texts, in use or not; None: nothing is let go of."""
        ...

    def drop_unused(self) -> None:
        """Let go of what no text in progress needs."""
        ...


@runtime_checkable
class WatchesWeights(Protocol):
    """A model that keeps what it has read, and whose weights may change."""

    def look_at_weights(self) -> None:
        """Forget what was read with other weights; called when requests begin."""
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory has ended, on whatever device."""
    if isinstance(error, MemoryError):
        return True
    # torch raises a RuntimeError on the CPU, and a kind of its own on others.
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _SAYS)


def want_of_memory(run: Callable[[], object]) -> Exception | None:
    """Do something; return the error if memory ended meanwhile, without what it came from.

    Whoever makes room does so afterwards: within a handler the error still holds tensors.
    """
    try:
        run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return bare(error)
    return None


def iterate_in_smaller_batches(
    run: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    *,
    what: str,
    make_room: Callable[[int], None],
    most: int | None = None,
) -> Iterator[Result]:
    """Run items together; when memory runs out, in batches of half as many, and so on.

    Args:
        run: Gives a result for each item; may be run again after it has failed.
        items: What to run.
        what: They are, for the log.
        make_room: Lets go of what is not needed; told how many items will be tried at once.
        most: Items at once to begin with; None for all.

    Yields:
        The result of each item, in order.

    Raises:
        RuntimeError: Memory runs out with a single item, in the room that was made. The results
            of the items before it have been yielded.
        MemoryError: The same.
    """
    size = max(1, min(most or len(items), len(items)))
    start, is_last_try = 0, False
    while start < len(items):
        try:
            results = run(items[start : start + size])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or is_last_try:
                raise
        else:
            yield from results
            start, is_last_try = start + size, False
            continue
        # Outside the handler: its error holds the tensors of the failed run.
        is_last_try = size == 1
        if size > 1:
            size = -(-size // 2)
            logger.warning("Out of memory; reducing the batch to %d %s.", size, what)
        make_room(size)


def in_smaller_batches(
    run: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    *,
    what: str,
    make_room: Callable[[int], None],
) -> list[Result]:
    """Return what `iterate_in_smaller_batches` yields."""
    return list(iterate_in_smaller_batches(run, items, what=what, make_room=make_room))


def bare(error: Exception) -> Exception:
    """Return an error without what it came from: frames hold tensors, and errors each other."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def make_room(*models: object) -> None:
    """Have models let go of what no text in progress needs."""
    for model in models:
        if isinstance(model, KeepsCache):
            model.drop_unused()
    release_unused()


def release_unused() -> None:
    """Give memory that torch holds for later back to its device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
