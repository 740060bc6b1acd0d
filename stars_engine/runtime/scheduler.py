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

from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.errors import EngineClosedError, GenerationError, describe_error
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.questions import Asked, answer_now
from stars_engine.rollout import Rollout
from stars_engine.rounds import Entry, Events, Rounds
from stars_engine.runtime.calls import Answer, Call, RewardSource, resolve
from stars_engine.runtime.diagnostics import Diagnostics
from stars_engine.runtime.gate import Gate
from stars_engine.runtime.models import Models
from stars_engine.runtime.offload import Offload
from stars_engine.runtime.prompts import read_prompts
from stars_engine.runtime.stats import EngineStats, Totals
from stars_engine.types import SegmentEvent

logger = logging.getLogger(__name__)

READING_S = 0.02  # spent on reading prompts between two rounds, so that a long list holds up nobody


class Scheduler:
    """What the thread does. All methods but `post`, `stop` and `stats` belong to it.

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
        self._reading: deque[Call] = deque()
        self._open: set[Call] = set()  # taken, and not answered yet
        self._calls: deque[Call] = deque()  # with rollouts waiting, the next in turn first
        self._rounds: Rounds | None = None
        self._answers: dict[Rollout, Answer] = {}  # by the rollouts that are run for them
        self._offload = Offload(self.post)
        self._totals = Totals()
        self._diagnostics = Diagnostics()
        self._stop = Event()
        self._cause: BaseException | None = None  # of its end, if it was not asked to stop

    # --- from any thread ---

    def post(self, message: Callable[[], None]) -> None:
        """Have something done between two rounds."""
        self._inbox.put(message)

    def stop(self, *, at_once: bool) -> None:
        """End after this round, with an error to all calls; or in the middle of it."""
        self._stop.set()
        interrupt = getattr(self._models.model, "interrupt", None)
        if at_once and interrupt is not None:
            interrupt()
        self.post(lambda: None)

    def stats(self) -> EngineStats:
        """Return what is going on."""
        rounds = self._rounds
        return EngineStats(
            num_in_line=self.gate.num_in_line,
            num_waiting=self.gate.num_inside,
            num_active=rounds.num_active if rounds else 0,
            num_rows=rounds.num_ready_rows if rounds else 0,
            num_rounds=rounds.num_rounds if rounds else 0,
            num_loads=self._models.num_loads,
            **self._totals.snapshot(),
        )

    # --- the thread ---

    def run(self) -> None:
        """Work until stopped."""
        while not self._stop.is_set():
            self._read_inbox()
            self._work()

    def _work(self) -> None:
        self._read_prompts()
        self._end_waiting_past_deadline()
        self._admit()
        if self._rounds is not None:
            self._go_one_round(self._rounds)

    def _go_one_round(self, rounds: Rounds) -> None:
        """Models are other people's code: what they raise ends the round, and nothing else."""
        try:
            events = rounds.step()
        except BaseException as error:
            if self._stop.is_set():
                return  # `Interrupted`
            logger.exception("a round failed; the requests in progress end with an error")
            self._fail_active(error)
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

    def _patience_s(self) -> float | None:
        """How long to wait for messages: not at all while there is work."""
        if self._reading or (self._rounds is not None and self._rounds.num_ready_rows):
            return 0.0
        if self._calls and self._may_admit():
            return 0.0
        active = self._rounds.active if self._rounds else []
        waiting = [rollout for call in self._calls for rollout in call.waiting]
        times = [rollout.remaining_s for rollout in (*active, *waiting)]
        times += [self._offload.write_off_overdue(), self._sweep()]
        return max(0.0, min((time for time in times if time is not None), default=1e6))

    # --- calls ---

    def load(self, source: RewardSource, asked_s: float, done: Future[object]) -> None:
        """Load both models and say when they are there."""
        try:
            resolve(done, self._get_models(source, asked_s))
        except Exception as error:  # noqa: BLE001 - loading runs other people's code
            done.set_exception(error)

    def forget_reward(self, key: str) -> None:
        """Let go of a reward model that no handle uses any more."""
        reward = self._models.forget(key)
        if reward is not None:
            self._offload.close(reward)

    def end_call(self, call: Call) -> None:
        """End a call that its caller gave up; what was accepted is its answer."""
        if self.gate.withdraw(call):
            call.fail(EngineClosedError("the request was cancelled before it began"))
            return
        if call in self._reading:
            self._reading.remove(call)
            self.gate.leave(call.num_rollouts)
            call.fail(EngineClosedError("the request was cancelled before it began"))
            return
        self._drop_waiting(call, call.waiting)
        for answer in call.open_answers:
            event = answer.end_as_cancelled()
            self._close(answer, event)
        if self._rounds is not None:
            self._rounds.forget_finished()

    def _take(self, call: Call) -> None:
        """A call has come in: load what it needs and begin to read its prompts."""
        if call.future.done():  # cancelled in the meantime
            self.gate.leave(call.num_rollouts)
            return
        self._open.add(call)
        call.future.add_done_callback(lambda _: self._open.discard(call))
        try:
            model, reward = self._get_models(call.reward, call.submitted_s)
        except Exception as error:  # noqa: BLE001 - loading runs other people's code
            self.gate.leave(call.num_rollouts)
            call.fail(error)
            return
        if self._rounds is None:
            self._rounds = self._new_rounds(model)
        call.reward_model = reward
        call.reading = read_prompts(call, model, max_rows=self._params.max_rows)
        self._reading.append(call)

    def _get_models(
        self, source: RewardSource, asked_s: float
    ) -> tuple[PromptedModel, RewardModel]:
        if self._stop.is_set():
            raise _closed(self._cause)
        return self._models.get(source, asked_s=asked_s)

    def _read_prompts(self) -> None:
        """Read on for a moment, in turn."""
        until_s = time.monotonic() + READING_S
        while self._reading and time.monotonic() < until_s:
            call = self._reading.popleft()
            assert call.reading is not None
            try:
                done = next(call.reading, "done") == "done"
            except Exception as error:  # noqa: BLE001 - tokenizers are other people's code
                self.gate.leave(call.num_rollouts)
                call.fail(error)
                continue
            if done:
                self._enqueue(call)
            else:
                self._reading.append(call)

    def _enqueue(self, call: Call) -> None:
        """All prompts are read: the call fails as a whole, or its rollouts wait for a place."""
        call.reading = None
        failed = call.num_rollouts - sum(len(answer.parts) for answer in call.answers)
        error = call.first_error
        if call.future.done() or (error is not None and not call.return_exceptions):
            self.gate.leave(call.num_rollouts)
            if error is not None:
                call.fail(error)
            return
        self.gate.leave(failed)
        resolve(call.prepared, None)
        for answer in call.answers:
            for part in answer.parts:
                self._answers[part] = answer
                call.waiting.append(part)
        if call.waiting:
            self._calls.append(call)
        call.give_if_complete()

    # --- rollouts ---

    def _new_rounds(self, model: PromptedModel) -> Rounds:
        return Rounds(model, self._score, max_rows=self._params.max_rows)

    def _may_admit(self) -> bool:
        rounds = self._rounds
        return rounds is not None and (
            rounds.num_active < self._params.max_active
            and rounds.num_ready_rows < self._params.max_rows
        )

    def _admit(self) -> None:
        """Fill the free places, one rollout of each call in turn."""
        if not (self._calls and self._may_admit()):
            return
        assert self._rounds is not None
        num_rows, num_active = self._rounds.num_ready_rows, self._rounds.num_active
        entries = []
        while self._calls and num_active < self._params.max_active:
            call = self._calls[0]
            rollout = call.waiting[0]
            answer = self._answers[rollout]
            assert call.reward_model is not None
            entry = Entry(rollout, call.reward_model, answer.decoding)
            rows = entry.decoding.num_drafts(rollout)
            if num_rows and num_rows + rows > self._params.max_rows:
                break
            num_rows, num_active = num_rows + rows, num_active + 1
            entries.append(entry)
            call.waiting.popleft()
            self._calls.rotate(-1)
            if not call.waiting:
                self._calls.pop()
        try:
            self._rounds.join(entries)
        except BaseException as error:
            logger.exception("reading %d prompts failed", len(entries))
            self._fail([entry.rollout for entry in entries], error)
        self.gate.leave(len(entries))

    def _end_waiting_past_deadline(self) -> None:
        for call in list(self._calls):
            late = [rollout for rollout in call.waiting if rollout.past_deadline]
            self._drop_waiting(call, late)
            self._deliver([(rollout, rollout.finish("deadline")) for rollout in late])

    def _drop_waiting(self, call: Call, rollouts: Sequence[Rollout]) -> None:
        if rollouts:
            self.gate.leave(len(rollouts))
            gone = set(rollouts)
            call.waiting = deque(rollout for rollout in call.waiting if rollout not in gone)
            if not call.waiting:
                self._calls.remove(call)

    # --- rewards ---

    def _score(self, asked: Sequence[Asked]) -> None:
        """Have other people's functions asked on threads of theirs, and models on this one."""
        self._offload.ask([item for item in asked if self._offload.takes(item.reward)])
        answer_now([item for item in asked if not self._offload.takes(item.reward)])

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
        if answer.call.judged:
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

    def _fail_active(self, cause: BaseException) -> None:
        """After a failed round nothing is known about the model's records: begin anew."""
        failed, model = self._rounds, self._models.model
        if failed is None or model is None:
            return
        self._rounds = self._new_rounds(model)
        self._rounds.num_rounds = failed.num_rounds
        self._deliver(failed.take_events())
        self._fail([rollout for rollout in failed.active if rollout in self._answers], cause)

    def send_all_home(self, cause: BaseException | None) -> None:
        """Tell everybody that the engine is closed, or what has ended it.

        Once this is called nobody comes in any more.
        """
        self._stop.set()
        self._cause = cause
        for answer in set(self._answers.values()):
            try:
                self._close(answer, answer.rollout.fail(_closed(cause)))
            except Exception:
                logger.exception("an answer could not be ended in order")
        for call in (*self.gate.send_home(), *self._open):
            call.fail(_closed(cause))
        try:
            while True:  # calls that came in meanwhile are refused
                self._inbox.get_nowait()()
        except Empty:
            pass
        self._offload.close_all()
        self._rounds = None
        self._models = Models(_refuse)


def _closed(cause: BaseException | None = None) -> EngineClosedError:
    if cause is None:
        return EngineClosedError(
            "the engine was closed before this request had ended. Cure: close it when the results "
            "are there; the error's `result` holds what was accepted"
        )
    error = EngineClosedError(
        f"the engine's thread failed: {describe_error(cause)}. Cure: make a new StarsEngine(config)"
    )
    error.__cause__ = cause
    return error


def _refuse() -> PromptedModel:
    raise _closed()
