"""Which rollouts have their prefix in memory, and which wait until there is room for it.

Where memory ends, no request fails for others' sake: some wait without a prefix, which is read
when another has ended. That costs time and changes no text.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from stars_engine.algorithm.rollout import Rollout
from stars_engine.backends.base import LanguageModel
from stars_engine.errors import GenerationError, describe_error
from stars_engine.memory import want_of_memory

logger = logging.getLogger(__name__)


class Entered(NamedTuple):
    """Who was called in.

    Attributes:
        rollouts: Have a place now.
        failed: Cannot have one though nobody else does, with the error.
    """

    rollouts: list[Rollout]
    failed: list[tuple[Rollout, Exception]]


class Places:
    """The prefixes of rollouts. Who has a place has a `slot`.

    Args:
        model: Reads them.
        make_room: Lets go of what no text in progress needs.
    """

    def __init__(self, model: LanguageModel, make_room: Callable[[], None]) -> None:
        self._model, self._make_room = model, make_room
        self._line: deque[Rollout] = deque()
        # Who found no room the last time, and how many had a place then.
        self._refused: tuple[Rollout, int] | None = None

    def num_waiting(self, busy: Collection[Rollout] = ()) -> int:
        """Return how many wait for a place, but for those that do not need one yet."""
        return sum(rollout not in busy for rollout in self._line)

    def enter(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Read the prefixes of newcomers; return them, or nobody if they have to wait."""
        if self._line:  # nobody passes those in line
            self._line += rollouts
            return []
        if self._read(rollouts) is None:
            return list(rollouts)
        self._line += rollouts
        self._refused = None  # one at a time may do
        logger.warning("memory ended while %d prompts were read: they wait", len(rollouts))
        return []

    def leave(self, rollouts: Sequence[Rollout], num_inside: int) -> None:
        """Take their places from rollouts; they are the first in line for others.

        Args:
            rollouts: Whose prefixes are let go of.
            num_inside: Rollouts that still have a place.
        """
        self._let_go(rollouts)
        self._line.extendleft(reversed(rollouts))
        self._refused = self._line[0], num_inside

    def lend(self, rollouts: Sequence[Rollout]) -> None:
        """Take their places from rollouts that need none for now; they are the last in line.

        Without it those who wait for each other, as pilots of a calibration do, would never end.
        """
        self._let_go(rollouts)
        self._line.extend(rollouts)
        self._refused = None

    def call_in(self, num_inside: int, busy: Collection[Rollout]) -> Entered:
        """Read prefixes of those in line, as far as there is room.

        Args:
            num_inside: Rollouts that have a place.
            busy: Rollouts that do not need one yet.
        """
        entered: list[Rollout] = []
        for rollout in [rollout for rollout in self._line if rollout not in busy]:
            if not self.may_try(num_inside, busy):
                break
            error = self._read([rollout])
            if error is not None and not num_inside:  # once more, in the room that was made
                error = self._read([rollout])
            if error is None:
                entered.append(rollout)
                num_inside += 1
            elif num_inside:
                self._refused = rollout, num_inside
                break
            else:
                self._line.remove(rollout)
                return Entered(entered, [(rollout, no_room(rollout, error))])
            self._line.remove(rollout)
        return Entered(entered, [])

    def may_try(self, num_inside: int, busy: Collection[Rollout]) -> bool:
        """Whether the first in line found room, or somebody has left since it found none."""
        first = next((rollout for rollout in self._line if rollout not in busy), None)
        if first is None or not num_inside or self._refused is None:
            return first is not None
        return self._refused[0] is not first or num_inside < self._refused[1]

    def forget_finished(self) -> None:
        """Let those go that have ended, whoever ended them."""
        self._line = deque(rollout for rollout in self._line if not rollout.finished)

    def _let_go(self, rollouts: Sequence[Rollout]) -> None:
        for rollout in rollouts:
            rollout.slot = None
        self._make_room()
        logger.warning("memory ended: %d requests wait, and are read again later", len(rollouts))

    def _read(self, rollouts: Sequence[Rollout]) -> Exception | None:
        """Read prompts, and what had been accepted when a place was taken; or say why not."""
        problem = want_of_memory(lambda: self._try_to_read(rollouts))
        if problem is not None:
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
