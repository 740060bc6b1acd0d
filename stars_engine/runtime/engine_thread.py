"""The engine's own thread: calls in, rounds, answers out. Nothing else touches the models."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event

from stars_engine.algorithm.rollout import Rollout
from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.core.autotune import Pacer
from stars_engine.core.engine_core import Entry, Events, Rounds
from stars_engine.errors import GenerationError, Interrupted, describe_error
from stars_engine.memory import KeepsCache
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.reward_requests import Asked, answer_now, single_models
from stars_engine.runtime.admission_queue import Gate
from stars_engine.runtime.budgets import Budget, Taken
from stars_engine.runtime.diagnostics import Diagnostics
from stars_engine.runtime.futures import reject, resolve
from stars_engine.runtime.input_processor import Intake
from stars_engine.runtime.models import Models
from stars_engine.runtime.request_group import Answer, Call, RewardSource, closed_at_work
from stars_engine.runtime.reward_executor import Offload
from stars_engine.runtime.stats import EngineStats, Totals
from stars_engine.types import FinishReason, SegmentEvent

logger = logging.getLogger(__name__)

WATCH_S = 0.02  # between two looks at what may be due, while there is work
LOOP_CHECK_S = 1.0  # between two looks at whether an event loop still exists, without work
LONGEST_WAIT_S = 3600.0  # locks cannot wait for ever by a number
MAX_FAILURES = 10  # in a row that hit nobody's request: then something is broken for good


class Scheduler:
    """What the thread does. All methods but those marked otherwise belong to it.

    Args:
        load: Loads the language model.
        params: Bounds.
        sweep: Lets go of what is unused, and says in how many seconds to ask again.
    """

    def __init__(
        self,
        load: Callable[[], PromptedModel],
        params: EngineParams,
        *,
        sweep: Callable[[], float | None],
    ) -> None:
        self._sweep = sweep
        self._params = params
        self._models = Models(load)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.gate = Gate(params.max_waiting, lambda call: self.post(partial(self._take, call)))
        self._intake = Intake(self.gate, self._get_models, self._enqueue, params)
        self._open: set[Call] = set()  # that have come in
        self._calls: deque[Call] = deque()  # with rollouts waiting, the next in turn first
        self._rounds: Rounds | None = None
        self._pacer = Pacer()
        self._num_rounds = 0  # of rounds that failed or were closed
        self._answers: dict[Rollout, Answer] = {}  # by the rollouts that are run for them
        self.offload = Offload(self.post)
        self._totals = Totals()
        self._diagnostics = Diagnostics()
        self._stop = Event()
        self._at_once = False
        self._watch_again_s = 0.0
        self._num_failures = 0
        self._cause: BaseException | None = None  # of its end, if it was not asked to stop

    # --- from any thread ---

    def post(self, message: Callable[[], None]) -> None:
        """Have something done between two rounds."""
        self._inbox.put(message)

    def stop(self, *, at_once: bool) -> None:
        """End after this round, with an error to all calls; or in the middle of it."""
        self._at_once = self._at_once or at_once
        self._stop.set()
        interrupt = getattr(self._models.model, "interrupt", None)
        if at_once and interrupt is not None:
            interrupt()
        self.post(lambda: None)

    def loaded(self, source: RewardSource) -> tuple[PromptedModel, RewardModel] | None:
        """Return both models if they are loaded."""
        return self._models.peek(source.key)

    def stats(self) -> EngineStats:
        """Return what is going on."""
        rounds = self._rounds
        return EngineStats(
            num_in_line=self.gate.num_in_line,
            num_waiting=self.gate.num_inside,
            num_active=rounds.num_active if rounds else 0,
            num_rows=rounds.num_ready_rows if rounds else 0,
            num_rounds=self._num_rounds + (rounds.num_rounds if rounds else 0),
            num_loads=self._models.num_loads,
            **self._totals.snapshot(),
        )

    # --- the thread ---

    def run(self) -> None:
        """Work until stopped."""
        while not self._stop.is_set():
            try:
                self._read_inbox()
                self._work()
            except (Exception, Interrupted) as error:  # noqa: BLE001 - `_survive` tells of it
                if not self._stop.is_set():
                    self._survive(error)
            else:
                self._num_failures = 0

    def _work(self) -> None:
        self._intake.read_on()
        self._admit()
        if self._rounds is not None:
            self._go_one_round(self._rounds)

    def _go_one_round(self, rounds: Rounds) -> None:
        """Models are other people's code: what they raise ends the round, and nothing else."""
        try:
            events = rounds.step()
        except BaseException as error:  # noqa: BLE001 - `_survive` tells of it
            if self._stop.is_set():
                return  # `Interrupted`
            self._survive(error)
        else:
            self._deliver(events)

    def _read_inbox(self) -> None:
        """Do what others asked for; with nothing else to do, wait for it."""
        try:
            message = self._inbox.get(timeout=self._patience_s())
            while True:
                message()
                message = self._inbox.get_nowait()
        except Empty:
            pass

    def _patience_s(self) -> float:
        """See to what is due; return how long to wait for messages: not at all if there is work."""
        if not self._has_work:
            return self._keep_watch()
        if time.monotonic() >= self._watch_again_s:
            self._keep_watch()
        return 0.0

    @property
    def _has_work(self) -> bool:
        if self._intake.reading:
            return True
        if self._rounds is None:
            return False
        if self._rounds.num_ready > 0:
            return True
        taken, is_full = self._taken(self._rounds), False
        for call in self._calls:
            if self._has_place(call, taken):
                fits = self._fits(call, taken, is_full=is_full)
                if fits:
                    return True
                is_full = True
        return False

    def _keep_watch(self) -> float:
        """End what is past its time; return how long at most nothing more can be.

        Rounds look at the deadlines of what is in progress themselves.
        """
        self._watch_again_s = time.monotonic() + WATCH_S
        self._open = {call for call in self._open if not call.future.done()}
        times = [LONGEST_WAIT_S, self.offload.write_off_overdue(), self._sweep()]
        for call in [*self.gate.line, *self._open]:
            if call.is_abandoned is not None:
                times.append(LOOP_CHECK_S)
                if call.is_abandoned():
                    self.end_call(call)
        for call in self.gate.line:
            remaining_s = call.remaining_s
            if remaining_s is not None and remaining_s <= 0:
                self.end_call(call, "deadline")
            times.append(remaining_s)
        for call in list(self._calls):
            late = [rollout for rollout in call.waiting if rollout.past_deadline]
            self._drop_waiting(call, late)
            self._deliver([(rollout, rollout.finish("deadline")) for rollout in late])
            times += [rollout.remaining_s for rollout in call.waiting]
        if self._rounds is not None:
            times += [rollout.remaining_s for rollout in self._rounds.active]
        return max(0.0, min(seconds for seconds in times if seconds is not None))

    # --- calls ---

    def load(self, source: RewardSource, asked_s: float, done: Future[object]) -> None:
        """Load both models and say when they are there."""
        try:
            resolve(done, self._get_models(source, asked_s))
        except Exception as error:  # noqa: BLE001 - loading runs other people's code
            reject(done, error)

    def forget_reward(self, key: str) -> None:
        """Let go of a reward model that neither handle nor call uses any more."""
        reward = self._models.forget(key)
        if reward is not None:
            self.offload.close(reward)

    def end_call(self, call: Call, reason: FinishReason = "cancelled") -> None:
        """End a call where it stands; what was accepted is its answer."""
        self.gate.forget(call)
        if call.is_over:
            return
        if call.reading is not None or not call.answers:
            self._intake.withdraw(call)
        if call.waiting:
            call.waiting.clear()
            self._calls.remove(call)
        for answer in call.open_answers:
            self._close(answer, answer.end(reason))
        call.give_if_complete()
        if self._rounds is not None:
            self._rounds.forget_finished()

    def _take(self, call: Call) -> None:
        """A call has come in, unless it was given up meanwhile."""
        if call.ended or call.future.done():
            self.end_call(call)
            return
        self._open.add(call)
        self._intake.take(call)

    def _get_models(
        self, source: RewardSource, asked_s: float
    ) -> tuple[PromptedModel, RewardModel]:
        if self._stop.is_set():
            raise closed_at_work(self._cause)
        model, reward = self._models.get(source, asked_s=asked_s)
        for each in (model, *single_models(reward)):
            if isinstance(each, KeepsCache):
                each.limit_cache(self._params.max_cache_bytes)
        return model, reward

    def _enqueue(self, call: Call) -> None:
        """All prompts are read: the rollouts wait for a place."""
        for answer in call.answers:
            self._answers |= dict.fromkeys(answer.parts, answer)
        if call.waiting:
            self._calls.append(call)
        if self._rounds is None and self._models.model is not None:
            self._rounds = self._new_rounds(self._models.model)
        call.give_if_complete()

    # --- rollouts ---

    def _new_rounds(self, model: PromptedModel) -> Rounds:
        return Rounds(model, self._score, max_rows=self._params.max_rows, pacer=self._pacer)

    def _taken(self, rounds: Rounds) -> Taken:
        return Taken.by(rounds.active, rounds.num_by_reward())

    def _has_place(self, call: Call, taken: Taken) -> bool:
        """Whether there is a place for its next rollout; if not, others may pass it.

        Those that wait for a slow reward do not take places from others: each reward has as many of
        its own.
        """
        has_place = taken.places[id(call.reward_model)] < self._params.max_active
        return has_place and self.gate.may_go(call)

    def _fits(self, call: Call, taken: Taken, *, is_full: bool) -> bool:
        """Whether there is room for its next rollout; if not, nobody passes it, or it never came.

        Pilots of a calibration wait for each other, so no budget may keep one out.

        Args:
            call: The call.
            taken: By those in progress.
            is_full: Whether there was none for one before it.
        """
        rollout = call.waiting[0]
        if getattr(self._answers[rollout].decoding, "is_pilot", False):
            return True
        budget = Budget(self._params, self._models.model)
        return not is_full and (not taken.num_tokens or budget.holds(rollout, taken))

    def _admit(self) -> None:
        """Fill the free places, one rollout of each call in turn."""
        if self._rounds is None or not self._calls:
            return
        num_rows, num_ready = self._rounds.num_ready_rows, self._rounds.num_ready
        taken, is_full = self._taken(self._rounds), False
        entries: list[Entry] = []
        num_passed = 0
        while num_passed < len(self._calls) and num_ready < self._params.max_active:
            call = self._calls[0]
            has_place = self._has_place(call, taken)
            if not has_place or not self._fits(call, taken, is_full=is_full):
                is_full = is_full or has_place
                self._calls.rotate(-1)
                num_passed += 1
                continue
            rollout, reward = call.waiting[0], call.reward_model
            assert reward is not None
            entry = Entry(rollout, reward, self._answers[rollout].decoding)
            rows = self._rounds.num_drafts(entry)
            if num_rows and num_rows + rows > self._params.max_rows:
                break
            num_rows, num_ready, num_passed = num_rows + rows, num_ready + 1, 0
            taken.add(rollout)
            taken.places[id(reward)] += 1
            entries.append(entry)
            call.waiting.popleft()
            self._calls.rotate(-1)
            if not call.waiting:
                self._calls.pop()
            self.gate.go(call)
        try:
            self._rounds.join(entries)
        except BaseException as error:
            logger.exception("reading %d prompts failed", len(entries))
            self._fail([entry.rollout for entry in entries], error)

    def _drop_waiting(self, call: Call, rollouts: Sequence[Rollout]) -> None:
        if rollouts:
            self.gate.drop(call, len(rollouts))
            gone = set(rollouts)
            call.waiting = deque(rollout for rollout in call.waiting if rollout not in gone)
            if not call.waiting:
                self._calls.remove(call)

    # --- rewards ---

    def _score(self, asked: Sequence[Asked]) -> None:
        """Have other people's functions asked on threads of theirs, and models on this one."""
        self.offload.ask([item for item in asked if self.offload.takes(item.reward)])
        answer_now([item for item in asked if not self.offload.takes(item.reward)])

    # --- answers ---

    def _deliver(self, events: Events) -> None:
        for rollout, event in events:
            answer = self._answers[rollout]
            if rollout.finished:
                del self._answers[rollout]
            seen = answer.note(rollout, event)
            if seen is not None and answer.rollout.finished:
                self._close(answer, seen)
            elif seen is not None:
                answer.call.note(answer, seen)

    def _close(self, answer: Answer, event: SegmentEvent) -> None:
        for part in answer.parts:
            self._answers.pop(part, None)
        self._totals.add(answer.rollout, judged=answer.call.judged)
        if answer.call.tells_of_settings:
            self._diagnostics.observe(answer.rollout)
        answer.call.note(answer, event)

    def _fail(self, rollouts: Sequence[Rollout], cause: BaseException) -> None:
        for rollout in rollouts:
            error = GenerationError(
                f"the language model failed: {describe_error(cause)}. Cure: for want of "
                "memory, lower EngineParams(max_rows=..., max_active=...), or shorten the prompt"
            )
            error.__cause__ = cause
            self._deliver([(rollout, rollout.fail(error))])

    def _survive(self, cause: BaseException) -> None:
        """After a failed round nothing is known about the model's records: begin anew."""
        failed, model = self._rounds, self._models.model
        hit = failed is not None and failed.num_active > 0
        self._num_failures = 0 if hit else self._num_failures + 1
        if self._num_failures <= 1:  # one account of what goes wrong again and again will do
            logger.error("a round failed; requests in progress end with an error", exc_info=cause)
        if self._num_failures >= MAX_FAILURES:
            logger.error("the engine ends: nothing can be done for %s in a row", MAX_FAILURES)
            self._cause = cause
            self._stop.set()
        if failed is None or model is None:
            return
        self._num_rounds += failed.num_rounds
        self._rounds = self._new_rounds(model)
        self._deliver(failed.take_events())
        self._fail([rollout for rollout in failed.active if rollout in self._answers], cause)

    def send_all_home(self, cause: BaseException | None) -> None:
        """After the end, tell everybody that the engine is closed, or what has ended it.

        May be done again. Nobody comes in any more.
        """
        self._stop.set()
        cause = self._cause = cause or self._cause
        for call in {*self.gate.shut(), *self._open}:
            if not call.answers or call.reading is not None:
                call.fail(closed_at_work(cause))
        for answer in set(self._answers.values()):
            try:
                self._close(answer, answer.rollout.fail(closed_at_work(cause)))
            except Exception:
                logger.exception("an answer could not be ended in order")
                answer.call.fail(closed_at_work(cause))
        self.offload.close_all(wait=not self._at_once)
        try:
            while True:  # calls that came in meanwhile are refused
                self._inbox.get_nowait()()
        except Empty:
            pass
        if self._rounds is not None:
            self._num_rounds += self._rounds.num_rounds
            self._rounds = None
        self._models.forget_all()
