"""Which rollouts have their prefix in memory, and which wait until there is room for it again.

Where memory ends, no request fails for others' sake: some wait without a prefix, which is read
again when another has ended. That costs time and changes no text.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from stars_engine.backends.base import LanguageModel
from stars_engine.errors import GenerationError, describe_error
from stars_engine.memory import is_out_of_memory
from stars_engine.rollout import Rollout

logger = logging.getLogger(__name__)


class Places:
    """The prefixes of rollouts.

    Args:
        model: Reads them.
        make_room: Lets go of what no text in progress needs.
    """

    def __init__(self, model: LanguageModel, make_room: Callable[[], None]) -> None:
        self._model, self._make_room = model, make_room
        self._waiting: deque[Rollout] = deque()  # the first in line is the next to have a place
        self._too_many = 0  # rollouts with a place, as many as there was no memory for

    @property
    def num_waiting(self) -> int:
        """How many have none."""
        return len(self._waiting)

    def enter(self, rollouts: Sequence[Rollout], num_inside: int) -> list[Rollout]:
        """Read the prefixes of newcomers; return them, or nobody if they have to wait.

        Args:
            rollouts: Newcomers.
            num_inside: Rollouts that have a place.
        """
        if self._waiting:  # nobody passes those in line
            self._waiting += rollouts
            return []
        if self._read(rollouts) is None:
            return list(rollouts)
        self._make_wait(rollouts, num_inside)
        return []

    def leave(self, rollouts: Sequence[Rollout], num_inside: int) -> None:
        """Take their places from rollouts; they are the first in line for others.

        Args:
            rollouts: Whose prefixes are let go of.
            num_inside: Rollouts that still have a place.
        """
        for rollout in rollouts:
            rollout.slot = None
        self._waiting.extendleft(reversed(rollouts))
        self._too_many = num_inside + len(rollouts)
        self._make_room()
        logger.warning(
            "memory ended: %d requests wait until another has ended, and are read again then",
            len(rollouts),
        )

    def call_in(self, num_inside: int) -> tuple[list[Rollout], list[tuple[Rollout, Exception]]]:
        """Read prefixes of those in line, as far as there is room.

        Args:
            num_inside: Rollouts that have a place.

        Returns:
            Who has a place now, and who cannot have one though nobody else does, with the error.
        """
        self._waiting = deque(rollout for rollout in self._waiting if not rollout.finished)
        entered: list[Rollout] = []
        while self._waiting and (num_inside == 0 or num_inside + 1 < self._too_many):
            rollout = self._waiting.popleft()
            error = self._read([rollout])
            if error and not num_inside:  # once more, in the room that was made
                error = self._read([rollout])
            if error is None:
                entered.append(rollout)
                num_inside += 1
            elif num_inside:
                self._waiting.appendleft(rollout)
                self._too_many = num_inside + 1
            else:
                return entered, [(rollout, no_room(rollout, error))]
        return entered, []

    def _make_wait(self, rollouts: Sequence[Rollout], num_inside: int) -> None:
        self._waiting += rollouts
        self._too_many = num_inside + len(rollouts)
        logger.warning(
            "memory ended while %d prompts were read beside %d requests in progress: they wait",
            len(rollouts),
            num_inside,
        )

    def _read(self, rollouts: Sequence[Rollout]) -> Exception | None:
        """Read prompts, and what had been accepted when a place was taken; or say why not."""
        try:
            self._try_to_read(rollouts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = error.with_traceback(None)  # its frames hold tensors
        else:
            return None
        for rollout in rollouts:
            rollout.slot = None
        self._make_room()
        return problem

    def _try_to_read(self, rollouts: Sequence[Rollout]) -> None:
        slots = self._model.prefill([rollout.prompt_ids for rollout in rollouts])
        for rollout, slot in zip(rollouts, slots, strict=True):
            rollout.slot = slot
        begun = [(r.slot, list(r.token_ids)) for r in rollouts if r.token_ids]
        if begun:
            self._model.commit(begun)


def no_room(rollout: Rollout, cause: Exception) -> GenerationError:
    """Return the error of a rollout for which memory is too small with nothing beside it."""
    error = GenerationError(
        f"memory ended ({describe_error(cause)}) with a prompt of {len(rollout.prompt_ids)} "
        f"tokens, {len(rollout.token_ids)} of its answer, no other request beside it and "
        "max_rows=1. Cure: a shorter prompt, shorter segments, or a smaller dtype of the model. "
        "The request ends here; others are not affected"
    )
    error.__cause__ = cause
    return error
