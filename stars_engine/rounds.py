"""Rounds: rollouts in flight are drafted, scored, judged and committed together."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from stars_engine.backends.base import Draft, DraftRequest, LanguageModel, checked_draft
from stars_engine.errors import GenerationError, RequestError
from stars_engine.memory import (
    WatchesWeights,
    bare,
    in_smaller_batches,
    is_out_of_memory,
    make_room,
    want_of_memory,
)
from stars_engine.pacing import Pacer, Turn
from stars_engine.places import Places, no_room
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.questions import Asked, answer_now, single_models, spread
from stars_engine.rollout import Rollout
from stars_engine.trial import Decoding, NumDrafts, Trial
from stars_engine.types import SegmentEvent

MAX_ACTIVE = 32  # rollouts in flight in `run_rounds`; the others wait for a place


class Entry(NamedTuple):
    """A rollout in flight, and by whom its drafts are judged and how.

    Attributes:
        rollout: The rollout.
        reward: Its reward model.
        decoding: How its drafts become text.
    """

    rollout: Rollout
    reward: RewardModel
    decoding: Decoding


class OpenTrial(NamedTuple):
    """An entry's drafts on trial."""

    entry: Entry
    trial: Trial


Scorer = Callable[[Sequence[Asked]], None]
Events = list[tuple[Rollout, SegmentEvent]]


class Rounds:
    """Rollouts in flight, moved on together; newcomers join between rounds.

    Rollouts that draft equally many tokens share a round, so that every row of it is equally long;
    others have their turn in the next. A rollout whose rewards are slow to come waits apart, and so
    does one for whose prefix there is no memory beside the others.
    After an error of the model the rounds are of no more use; `active` tells who was in them.

    Args:
        model: Drafts for all of them.
        scorer: Has questions answered, at once or before a later round.
        max_rows: Candidates drafted together at most.
        pacer: What earlier rounds have taught about speed.
    """

    def __init__(
        self,
        model: LanguageModel,
        scorer: Scorer = answer_now,
        *,
        max_rows: int | None = None,
        pacer: Pacer | None = None,
    ) -> None:
        self._model, self._scorer, self._max_rows = model, scorer, max_rows
        self._active: dict[Rollout, Entry] = {}
        self._ready: deque[Entry] = deque()  # longest waiting first
        self._trials: list[OpenTrial] = []
        self._events: Events = []
        self._pacer = pacer or Pacer()
        self._places = Places(model, self._make_room)
        self._rows_at_once: int | None = None  # since memory has ended
        self.num_rounds = 0

    @property
    def active(self) -> list[Rollout]:
        """Rollouts in flight."""
        return list(self._active)

    @property
    def num_active(self) -> int:
        """How many they are."""
        return len(self._active)

    @property
    def num_ready(self) -> int:
        """Rollouts that wait for nothing but their turn, or for memory that there may be.

        The others are out on trial.
        """
        return len(self._ready) or self._num_to_call_in

    @property
    def _num_inside(self) -> int:
        """Rollouts whose prefix is in memory."""
        return sum(rollout.slot is not None for rollout in self._active)

    @property
    def _num_to_call_in(self) -> int:
        """Rollouts that wait for memory, if there may be some."""
        busy = self._busy
        may_try = self._lendable or self._places.may_try(self._num_inside, busy)
        return self._places.num_waiting(busy) if may_try else 0

    @property
    def _lendable(self) -> list[Rollout]:
        """Rollouts that need no place: all their drafts are judged, and they wait for others."""
        waiting = [item for item in self._trials if not item.trial.closed and item.trial.all_there]
        return [item.entry.rollout for item in waiting if item.entry.rollout.slot is not None]

    @property
    def _busy(self) -> set[Rollout]:
        """Rollouts whose drafts are out on trial: they need no place before it has ended."""
        return {item.entry.rollout for item in self._trials if not item.trial.closed}

    def num_by_reward(self) -> Counter[int]:
        """Return how many rollouts are in flight with each reward model, by its identity."""
        return Counter(id(entry.reward) for entry in self._active.values())

    @property
    def num_ready_rows(self) -> int:
        """Candidates that the rollouts ready to draft ask for at least."""
        return sum(self.num_drafts(entry) for entry in tuple(self._ready))

    def num_drafts(self, entry: Entry) -> int:
        """Return how many candidates an entry drafts at least if its turn is now."""
        return self._bounds(entry).least

    def _bounds(self, entry: Entry) -> NumDrafts:
        bounds = entry.decoding.num_drafts(entry.rollout)
        if self._max_rows is None:
            return bounds
        least, most = min(bounds.least, self._max_rows), min(bounds.most, self._max_rows)
        return bounds._replace(least=least, most=most)

    def join(self, newcomers: Sequence[Entry]) -> None:
        """Read prompts and take their rollouts in."""
        if newcomers:
            for part in self._reward_parts(newcomers):
                if isinstance(part, WatchesWeights):
                    part.look_at_weights()
            entered = self._places.enter([entry.rollout for entry in newcomers])
            self._active |= {entry.rollout: entry for entry in newcomers}
            self._ready += [self._active[rollout] for rollout in entered]

    def step(self) -> Events:
        """Go one round: draft, score, walk, commit."""
        self._call_in()
        self._end_at_bounds()
        group = self._next_group()
        if group:
            self.num_rounds += 1
            started_s = time.perf_counter()
            trials = self._try_to_draft(group)
            self._trials += trials
            self._scorer(spread(_questions(trials)))
            if trials:
                seconds = time.perf_counter() - started_s
                num_rows = sum(count for _, count in group)
                self._pacer.note_round([entry.rollout for entry, _ in group], num_rows, seconds)
        self._walk()
        self._lend()
        return self.take_events()

    def take_events(self) -> Events:
        """Return what has happened since the last time."""
        events, self._events = self._events, []
        return events

    def forget_finished(self) -> None:
        """Let go of rollouts that have ended, whoever ended them."""
        for rollout in [rollout for rollout in self._active if rollout.finished]:
            del self._active[rollout]
        self._ready = deque(entry for entry in self._ready if not entry.rollout.finished)
        for item in self._trials:
            item.trial.closed = item.trial.closed or item.entry.rollout.finished
        self._trials = [item for item in self._trials if not item.trial.closed]
        self._places.forget_finished()

    def _end_at_bounds(self) -> None:
        """End the rollouts that may not draw again, or have no time left to wait for rewards."""
        for rollout in self._active:
            if rollout.past_deadline:
                self._events.append((rollout, rollout.finish("deadline")))
        for entry in self._ready:
            if not entry.rollout.finished and entry.rollout.over_budget:
                self._events.append((entry.rollout, entry.rollout.finish("budget")))
        if self._events:
            self.forget_finished()

    def _call_in(self) -> None:
        """Let those in that waited for memory, where there is some now."""
        busy = self._busy
        if not self._places.num_waiting(busy):
            return
        entered, failed = self._places.call_in(self._num_inside, busy)
        self._ready += [self._active[rollout] for rollout in entered]
        for rollout, error in failed:
            self._fail(rollout, error)

    def _lend(self) -> None:
        """Take places from those who wait for others, where these wait for a place."""
        busy = self._busy
        stuck = not self._ready and self._places.num_waiting(busy)
        if stuck and not self._places.may_try(self._num_inside, busy) and self._lendable:
            self._places.lend(self._lendable)

    def _fail(self, rollout: Rollout, error: Exception) -> None:
        self._events.append((rollout, rollout.fail(error)))
        self.forget_finished()

    def _next_group(self) -> list[tuple[Entry, int]]:
        """Take out the ready rollouts that draft as many tokens as the longest waiting one.

        Returns:
            Each with the number of its candidates.
        """
        limits = [n for n in (self._max_rows, self._rows_at_once) if n is not None]
        max_rows = min(limits, default=None)
        group: list[tuple[Entry, NumDrafts]] = []
        others: deque[Entry] = deque()
        num_rows = 0
        for entry in self._ready:
            bounds = self._bounds(entry)
            fits = not group or (
                entry.rollout.align.row_len == group[0][0].rollout.align.row_len
                and (max_rows is None or num_rows + bounds.least <= max_rows)
            )
            if fits:
                group.append((entry, bounds))
                num_rows += bounds.least
            else:
                others.append(entry)
        self._ready = others
        turns = [Turn(entry.rollout, entry.reward, bounds) for entry, bounds in group]
        counts = self._pacer.counts(turns, self._model, max_rows)
        return [(entry, count) for (entry, _), count in zip(group, counts, strict=True)]

    def _walk(self) -> None:
        """Use the answers that are there, and commit what was kept.

        Decodings may let rollouts wait for each other, so one that moves on can set others free.
        """
        kept: list[tuple[Rollout, list[int]]] = []
        moving = True
        while moving:
            trials = [item for item in self._trials if not item.trial.closed]
            moving = sum(self._judge(item, kept) for item in trials) > 0
        self.forget_finished()
        if kept:
            self._commit(kept)

    def _commit(self, kept: Sequence[tuple[Rollout, list[int]]]) -> None:
        """Append what was kept; where memory ends, these rollouts are read again later."""
        problem = want_of_memory(
            lambda: self._model.commit([(rollout.slot, ids) for rollout, ids in kept])
        )
        if problem is not None:
            self._leave([rollout for rollout, _ in kept])

    def _leave(self, rollouts: Sequence[Rollout]) -> None:
        """Have rollouts wait until there is memory for them."""
        self._ready = deque(entry for entry in self._ready if entry.rollout not in rollouts)
        self._places.leave(rollouts, self._num_inside - len(rollouts))

    def _make_room(self) -> None:
        make_room(self._model, *self._reward_parts(self._active.values()))

    @staticmethod
    def _reward_parts(entries: Iterable[Entry]) -> list[RewardModel]:
        rewards = {id(entry.reward): entry.reward for entry in entries}
        return [part for reward in rewards.values() for part in single_models(reward)]

    def _judge(self, item: OpenTrial, kept: list[tuple[Rollout, list[int]]]) -> bool:
        """Judge one trial as far as its answers go; return whether its rollout moved on."""
        entry, trial = item
        rollout, length = entry.rollout, len(entry.rollout.token_ids)
        try:
            event = entry.decoding.walk(trial)
        except RequestError as error:
            event = rollout.fail(error)
        if event is not None:
            self._pacer.note_event(rollout, entry.reward, event)
            self._events.append((rollout, event))
        trial.closed = trial.closed or event is not None or trial.all_used
        # Who has lent its place is in line for another.
        if trial.closed and not rollout.finished and rollout.slot is not None:
            self._ready.append(entry)
            if len(rollout.token_ids) > length:
                kept.append((rollout, rollout.token_ids[length:]))
        return event is not None

    def _try_to_draft(self, group: Sequence[tuple[Entry, int]]) -> list[OpenTrial]:
        """Draft; where memory ends with a single row, all that can wait do."""
        try:
            return self._draft(group)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = bare(error)
        first, *others = [entry for entry, _ in group]
        others += self._ready
        if others:
            self._ready = deque([first])
            self._leave([entry.rollout for entry in others])
        elif self._num_inside > 1:  # some are out on trial
            self._leave([first.rollout])
        else:
            self._fail(first.rollout, no_room(first.rollout, problem))
        return []

    def _draft_rows(self, requests: Sequence[DraftRequest]) -> list[Draft | GenerationError]:
        def shrink(num_rows: int) -> None:
            if num_rows < len(requests):
                self._rows_at_once = num_rows
            self._make_room()

        return in_smaller_batches(
            self._model.draft,
            requests,
            what="candidates",
            make_room=shrink,
            most=self._rows_at_once,
        )

    def _draft(self, group: Sequence[tuple[Entry, int]]) -> list[OpenTrial]:
        """Draft each rollout's next draws, all in one batch.

        Draws before a rollout's first failed one go on trial. The failure itself counts when it is
        the next draw, so that the outcome does not depend on how many are drafted at once.
        """
        requests = []
        for entry, count in group:
            first = entry.decoding.first_draft(entry.rollout)
            requests.append([entry.rollout.draft_request(first + i) for i in range(count)])
        drafts = iter(self._draft_rows([request for rows in requests for request in rows]))
        trials = []
        for (entry, _), rows in zip(group, requests, strict=True):
            drafted = [
                checked_draft(draft, row, self._model)
                for draft, row in zip(islice(drafts, len(rows)), rows, strict=True)
            ]
            candidates = []
            for draft in drafted:
                if isinstance(draft, GenerationError):
                    break
                candidates.append(entry.rollout.read(draft, self._model))
            if not candidates:
                [error, *_] = drafted
                assert isinstance(error, GenerationError)
                self._events.append((entry.rollout, entry.rollout.fail(error)))
                continue
            trials.append(OpenTrial(entry, entry.decoding.open(entry.rollout, candidates)))
        return trials


def _questions(trials: Sequence[OpenTrial]) -> Iterator[Asked]:
    for entry, trial in trials:
        for question in trial.questions():
            yield Asked(entry.reward, question)


def run_rounds(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel, decoding: Decoding
) -> Iterator[SegmentEvent]:
    """Run rounds until every rollout has ended; newcomers join where others have left."""
    waiting = deque(Entry(rollout, reward, decoding) for rollout in rollouts)
    rounds = Rounds(model)
    while waiting or rounds.num_active:
        places = MAX_ACTIVE - rounds.num_active
        rounds.join([waiting.popleft() for _ in range(min(len(waiting), places))])
        for _, event in rounds.step():
            yield event
