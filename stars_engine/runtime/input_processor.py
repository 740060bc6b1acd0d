"""Calls that have come in, until their prompts are read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.rewards.base import RewardModel
from stars_engine.runtime.admission_queue import Gate
from stars_engine.runtime.budgets import Budget
from stars_engine.runtime.futures import resolve
from stars_engine.runtime.prompt_processing import read_prompts, unread_answers
from stars_engine.runtime.request_group import Call, RewardSource

READING_S = 0.02  # spent on reading prompts between two rounds, so that a long list holds up nobody

GetModels = Callable[[RewardSource, float], tuple[PromptedModel, RewardModel]]


class Intake:
    """Loads what calls need and reads their prompts, a few at a time. For the engine's thread only.

    Args:
        gate: Which calls come through.
        get_models: Loads what a source needs, for who asked at that time.
        on_read: Called with each call whose rollouts may begin to wait for a place.
        params: Bounds how many candidates a rollout drafts at once, and how long it may be.
    """

    def __init__(
        self,
        gate: Gate,
        get_models: GetModels,
        on_read: Callable[[Call], None],
        params: EngineParams,
    ) -> None:
        self._gate, self._get_models, self._on_read = gate, get_models, on_read
        self._params = params
        self._reading: deque[Call] = deque()

    @property
    def reading(self) -> list[Call]:
        """Calls whose prompts are being read."""
        return list(self._reading)

    def take(self, call: Call) -> None:
        """A call has come in: load what it needs and begin to read its prompts."""
        try:
            model, reward = self._get_models(call.reward, call.submitted_s)
        except Exception as error:  # noqa: BLE001 - loading runs other people's code
            self._fail(call, error)
            return
        call.reward_model = reward
        call.reading = read_prompts(
            call,
            model,
            max_rows=self._params.max_rows,
            budget=Budget(self._params, model),
        )
        self._reading.append(call)

    def withdraw(self, call: Call) -> None:
        """Read no further; the call gets answers that were never begun."""
        if call in self._reading:
            self._reading.remove(call)
        call.begin_anew(unread_answers(call))

    def read_on(self) -> None:
        """Read for a moment, in turn."""
        until_s = time.monotonic() + READING_S
        while self._reading and time.monotonic() < until_s:
            call = self._reading.popleft()
            assert call.reading is not None
            try:
                done = next(call.reading, "done") == "done"
            except Exception as error:  # noqa: BLE001 - tokenizers are other people's code
                self._fail(call, error)
                continue
            if done:
                self._end(call)
            else:
                self._reading.append(call)

    def _end(self, call: Call) -> None:
        """All prompts are read: the call fails as a whole, or its rollouts wait for a place."""
        call.reading = None
        error = call.first_error
        if error is not None and not call.return_exceptions:
            self._fail(call, error)
            return
        parts = [part for answer in call.answers for part in answer.parts]
        self._gate.drop(call, call.num_rollouts - len(parts))
        call.waiting.extend(parts)
        resolve(call.prepared, None)
        self._on_read(call)

    def _fail(self, call: Call, error: Exception) -> None:
        self._gate.forget(call)
        call.fail(error)
