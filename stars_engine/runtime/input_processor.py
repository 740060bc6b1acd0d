"""Calls that have come in, until their prompts are read."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.core.budget import MemoryBudget
from stars_engine.rewards.base import RewardModel
from stars_engine.runtime.admission_queue import AdmissionQueue
from stars_engine.runtime.futures import resolve
from stars_engine.runtime.prompt_processing import read_prompts, unread_answers
from stars_engine.runtime.request_group import RequestGroup, RewardSource

READING_S = 0.02  # spent on reading prompts between two rounds, so that a long list holds up nobody

GetModels = Callable[[RewardSource, float], tuple[PromptedModel, RewardModel]]


class InputProcessor:
    """Loads what calls need and reads their prompts, a few at a time. For the engine's thread only.

    Args:
        admission: Which calls come through.
        get_models: Loads what a source needs, for who asked at that time.
        on_read: Called with each call whose rollouts may begin to wait for a place.
        params: Bounds how many candidates a rollout drafts at once, and how long it may be.
    """

    def __init__(
        self,
        admission: AdmissionQueue,
        get_models: GetModels,
        on_read: Callable[[RequestGroup], None],
        params: EngineParams,
    ) -> None:
        self._admission, self._get_models, self._on_read = admission, get_models, on_read
        self._params = params
        self._reading: deque[RequestGroup] = deque()

    @property
    def reading(self) -> list[RequestGroup]:
        """Calls whose prompts are being read."""
        return list(self._reading)

    def take(self, group: RequestGroup) -> None:
        """A call has come in: load what it needs and begin to read its prompts."""
        try:
            model, reward = self._get_models(group.reward, group.submitted_s)
        except Exception as error:  # noqa: BLE001 - loading runs other people's code
            self._fail(group, error)
            return
        group.reward_model = reward
        group.reading = read_prompts(
            group,
            model,
            max_rows=self._params.max_rows,
            budget=MemoryBudget(
                model,
                max_tokens=self._params.max_prefix_tokens,
                max_bytes=self._params.max_cache_bytes,
            ),
        )
        self._reading.append(group)

    def withdraw(self, group: RequestGroup) -> None:
        """Read no further; the call gets answers that were never begun."""
        if group in self._reading:
            self._reading.remove(group)
        group.begin_anew(unread_answers(group))

    def read_on(self) -> None:
        """Read for a moment, in turn."""
        until_s = time.monotonic() + READING_S
        while self._reading and time.monotonic() < until_s:
            group = self._reading.popleft()
            assert group.reading is not None
            try:
                done = next(group.reading, "done") == "done"
            except Exception as error:  # noqa: BLE001 - tokenizers are other people's code
                self._fail(group, error)
                continue
            if done:
                self._end(group)
            else:
                self._reading.append(group)

    def _end(self, group: RequestGroup) -> None:
        """All prompts are read: the call fails as a whole, or its rollouts wait for a place."""
        group.reading = None
        error = group.first_error
        if error is not None and not group.return_exceptions:
            self._fail(group, error)
            return
        parts = [part for answer in group.outputs for part in answer.parts]
        self._admission.drop(group, group.num_rollouts - len(parts))
        resolve(group.prepared, None)
        self._on_read(group)

    def _fail(self, group: RequestGroup, error: Exception) -> None:
        self._admission.forget(group)
        group.fail(error)
