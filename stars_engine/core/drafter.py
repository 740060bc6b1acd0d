"""Draft with any language model, which may fail or run out of memory: retry, or draft fewer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest, LanguageModel, Parts, Pause, is_pausable
from stars_engine.backends.draft_checks import checked_draft, checked_pause
from stars_engine.errors import GenerationError, RequestError, describe_error, is_for_program
from stars_engine.out_of_memory import clear_locals, is_out_of_memory, iterate_in_smaller_batches
from stars_engine.problems import without_exits

logger = logging.getLogger(__name__)

DraftOutcome = Draft | RequestError
_Parts = Generator[Pause, None, Sequence[DraftOutcome]]
_MIN_GOOD, _MAX_GOOD = 64, 4096  # full batches after which twice as many candidates are tried


class Drafter:
    """Drafts candidates; drafts fewer at once if memory runs out, and retries if the model fails.

    Args:
        model: The language model.
        free_unused: Frees memory that no request uses.

    Attributes:
        max_rows: Maximum number of candidates drafted at once; None until memory runs out. It
            doubles after some batches of that size; after more of them if it did so too soon.
    """

    def __init__(self, model: LanguageModel, free_unused: Callable[[], None]) -> None:
        self._model, self._free_unused = model, free_unused
        self.max_rows: int | None = None
        self._num_good, self._num_wanted = 0, _MIN_GOOD
        self._has_grown = False

    def draft(
        self, requests: Sequence[DraftRequest]
    ) -> Generator[DraftOutcome | Pause, None, None]:
        """Draft candidates.

        Yields:
            For each request, in order, a draft or an error. Between them, pauses of the model; it
            may never be resumed after one.

        Raises:
            RuntimeError: Out of memory with a single candidate (torch's error).
            MemoryError: The same, from Python.
        """

        def shrink(num_rows: int) -> None:
            if num_rows < len(requests):
                if self._has_grown:  # too soon
                    self._num_wanted = min(2 * self._num_wanted, _MAX_GOOD)
                self.max_rows, self._num_good, self._has_grown = num_rows, 0, False
            self._free_unused()

        max_rows = self.max_rows
        try:
            yield from iterate_in_smaller_batches(
                self._draft_isolated,
                requests,
                what="candidates",
                free_unused=shrink,
                most=max_rows,
            )
        except (RuntimeError, MemoryError):
            self.max_rows = max_rows  # fewer rows did not help: prefixes use the memory
            raise
        if max_rows is not None and self.max_rows == max_rows and len(requests) >= max_rows:
            self._num_good += 1
            if self._num_good == self._num_wanted:
                self.max_rows, self._num_good, self._has_grown = 2 * max_rows, 0, True

    def _draft_isolated(self, requests: Sequence[DraftRequest]) -> _Parts:
        """Draft; if the model fails twice, draft by halves to isolate the requests that fail."""
        try:
            return (yield from self._draft(requests))
        except BaseException as error:  # third-party code may also exit
            if not _may_try_again(error):
                raise
            logger.warning(
                "Drafting %d candidates failed; trying again", len(requests), exc_info=True
            )
        return (yield from self._draft_again(requests))

    def _draft(self, requests: Sequence[DraftRequest]) -> _Parts:
        model = self._model
        if not is_pausable(model):
            with without_exits():
                return self._checked(model.draft(requests), requests)
        with without_exits():
            parts = model.draft_in_parts(requests)
        try:
            while True:
                with without_exits():
                    try:
                        pause = checked_pause(next(parts))
                    except StopIteration as end:
                        return self._checked(end.value, requests)
                yield pause  # a `GeneratorExit` from here ends this draft
        finally:
            _close(parts)

    def _checked(
        self, drafts: Sequence[Draft | GenerationError], requests: Sequence[DraftRequest]
    ) -> list[DraftOutcome]:
        drafts = list(drafts)
        if len(drafts) != len(requests):
            raise ValueError(f"{len(drafts)} drafts for {len(requests)} requests")
        return [
            checked_draft(draft, request, self._model)
            for draft, request in zip(drafts, requests, strict=True)
        ]

    def _draft_again(self, requests: Sequence[DraftRequest]) -> _Parts:
        for request in requests:
            request.handle.release()  # the cached prefix may be corrupt after a failure
        try:
            return (yield from self._draft(requests))
        except BaseException as error:
            if not _may_try_again(error):
                raise
            if len(requests) == 1:
                logger.exception("Drafting a candidate failed")
                return [model_failed(error)]
        half = len(requests) // 2
        first = yield from self._draft_again(requests[:half])
        return [*first, *(yield from self._draft_again(requests[half:]))]


def _close(parts: Parts) -> None:
    """Close a draft, whatever the model raises: nobody waits for it."""
    try:
        parts.close()
    except BaseException as error:
        if is_for_program(error):
            raise
        logger.warning("Closing a draft failed", exc_info=True)


def _may_try_again(error: BaseException) -> bool:
    """Return whether a failure is the model's own, so that another try may succeed."""
    is_closed = isinstance(error, GeneratorExit)  # a paused draft is given up
    return not (is_closed or is_out_of_memory(error) or is_for_program(error))


def model_failed(cause: BaseException) -> GenerationError:
    """Return the error of a request for which the language model failed."""
    error = GenerationError(
        f"the language model failed: {describe_error(cause)}. Hint: if it ran out of memory, "
        "lower EngineParams(max_rows=..., max_active=...) or shorten the prompt"
    )
    clear_locals(cause)  # callers may keep the error
    error.__cause__ = cause
    return error
