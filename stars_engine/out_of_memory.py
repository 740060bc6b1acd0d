"""Recognize that memory ran out, free caches, and go on with less at a time."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Protocol, TypeGuard, TypeVar

from stars_engine.problems import describe_error, is_for_program
from stars_engine.protocols import has_members

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Pause = TypeVar("Pause")

_MESSAGES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
)


class KeepsCache(Protocol):
    """A model that caches what it has computed."""

    @property
    def bytes_per_token(self) -> int:
        """Memory of one cached token; 0 if nothing is cached, or before the first one is."""

    def limit_cache(self, max_bytes: int | None) -> None:
        """Bound the memory of the cache, in use or not; None for a default."""

    def free_unused(self) -> None:
        """Free what no request in progress needs."""


class ReportsMemory(Protocol):
    """A model that knows how much memory it holds beside its weights."""

    def memory_usage(self) -> Mapping[str, int]:
        """Return bytes by holder, such as "kv_cache". May be called from any thread."""


class DependsOnWeights(Protocol):
    """A model with a cache, whose weights may change."""

    def invalidate_if_changed(self) -> None:
        """Forget what was computed with other weights; called when requests start."""


def keeps_cache(model: object) -> TypeGuard[KeepsCache]:
    """Return whether a model implements `KeepsCache`."""
    return has_members(model, KeepsCache)


def depends_on_weights(model: object) -> TypeGuard[DependsOnWeights]:
    """Return whether a model implements `DependsOnWeights`."""
    return has_members(model, DependsOnWeights)


def memory_usage(model: object) -> Mapping[str, int]:
    """Return the bytes that a model reports by holder; empty if it reports none, or fails."""
    if not _reports_memory(model):
        return {}
    try:
        return {str(holder): int(size) for holder, size in model.memory_usage().items()}
    except BaseException as error:  # custom models are third-party code
        if is_for_program(error):
            raise
        logger.debug("memory_usage of %s failed", type(model).__name__, exc_info=True)
        return {}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device is out of memory."""
    if isinstance(error, MemoryError):
        return True
    # torch raises a RuntimeError on the CPU, and subclasses of it on other devices.
    if not isinstance(error, RuntimeError):
        return False
    message = describe_error(error).lower()
    return any(words in message for words in _MESSAGES)


def catch_oom(run: Callable[[], object]) -> Exception | None:
    """Call a function; return the error if memory ran out, without its traceback.

    Free memory afterwards, not in a handler: there, the error still holds tensors.
    """
    try:
        run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return strip_traceback(error)
    return None


def iterate_in_smaller_batches(
    run: Callable[[Sequence[Item]], Generator[Pause, None, Sequence[Result]]],
    items: Sequence[Item],
    *,
    what: str,
    free_unused: Callable[[int], None],
    most: int | None = None,
) -> Iterator[Result | Pause]:
    """Run items together; when memory runs out, in batches of half as many, and so on.

    Args:
        run: Returns a result for each item, after what it yields; may be called again after it has
            failed.
        items: What to run.
        what: The items' name in the log.
        free_unused: Frees memory; takes how many items will be tried at once.
        most: Items to try at once; None for all.

    Yields:
        What `run` yields, and the result of each item, in order.

    Raises:
        RuntimeError: Out of memory with a single item, after memory was freed. The results of the
            items before it have been yielded.
        MemoryError: The same.
    """
    size = max(1, min(most or len(items), len(items)))
    start, is_last_try = 0, False
    while start < len(items):
        try:
            results = yield from run(items[start : start + size])
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
        free_unused(size)


def in_smaller_batches(
    run: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    *,
    what: str,
    free_unused: Callable[[int], None],
) -> list[Result]:
    """Run items as `iterate_in_smaller_batches` does; return the result of each item."""

    def run_whole(some: Sequence[Item]) -> Generator[Result, None, Sequence[Result]]:
        yield from ()  # without pauses
        return run(some)

    return list(iterate_in_smaller_batches(run_whole, items, what=what, free_unused=free_unused))


def strip_traceback(error: Exception) -> Exception:
    """Return an error without its traceback and causes: their frames hold tensors."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def _reports_memory(model: object) -> TypeGuard[ReportsMemory]:
    return has_members(model, ReportsMemory)


def clear_locals(error: BaseException) -> None:
    """Drop the local variables of functions that an error has left, since they may hold tensors."""
    traceback.clear_frames(error.__traceback__)


def free_unused(*models: object) -> None:
    """Free what models cache and no request in progress needs."""
    for model in models:
        if not keeps_cache(model):
            continue
        try:
            model.free_unused()
        except BaseException as error:  # custom models are third-party code
            if is_for_program(error):
                raise
            logger.warning("free_unused of %s failed", type(model).__name__, exc_info=True)
    empty_device_cache()


def empty_device_cache() -> None:
    """Return memory that torch has reserved to its device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
