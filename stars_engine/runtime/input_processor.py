"""Read the prompts of admitted request groups, a few per step, after loading their models.

This module says when a prompt is read; `rollout_creation` says how.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.core.memory_budget import MemoryBudget
from stars_engine.rewards.base import RewardModel
from stars_engine.runtime.admission_queue import AdmissionQueue
from stars_engine.runtime.futures import set_result
from stars_engine.runtime.request_group import RequestGroup, RewardSource
from stars_engine.runtime.rollout_creation import read_prompts, unread_outputs

MAX_READING_S = 0.02  # per step, so that a long list of prompts does not delay other requests

GetModels = Callable[[RewardSource, float], tuple[PromptedModel, RewardModel]]


class InputProcessor:
    """Loads models and reads prompts, a few at a time. Runs on the engine's thread.

    Args:
        admission: The queue that has admitted the groups.
        get_models: Loads the models of a source; takes the source and the time of the request.
        on_read: Called with each group whose prompts are all read.
        params: Limits on the number of candidates and the length of a rollout.
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
        """Groups whose prompts are being read."""
        return list(self._reading)

    def add(self, group: RequestGroup) -> None:
        """Add a group: load its models and start to read its prompts."""
        try:
            model, reward = self._get_models(group.reward, group.submitted_s)
        except Exception as error:  # noqa: BLE001 - loading runs third-party code
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

    def abort(self, group: RequestGroup) -> None:
        """Stop reading the prompts of a group; give it outputs that never start."""
        if group in self._reading:
            self._reading.remove(group)
        group.replace_outputs(unread_outputs(group))

    def read_for_a_moment(self) -> None:
        """Read prompts for up to `MAX_READING_S`, one of each group in turn."""
        until_s = time.monotonic() + MAX_READING_S
        while self._reading and time.monotonic() < until_s:
            group = self._reading.popleft()
            assert group.reading is not None
            try:
                done = next(group.reading, "done") == "done"
            except Exception as error:  # noqa: BLE001 - tokenizers are third-party code
                self._fail(group, error)
                continue
            if done:
                self._end(group)
            else:
                self._reading.append(group)

    def _end(self, group: RequestGroup) -> None:
        """Finish a group whose prompts are all read: fail it as a whole, or pass it on."""
        group.reading = None
        error = group.first_error
        if error is not None and not group.return_exceptions:
            self._fail(group, error)
            return
        parts = [part for answer in group.outputs for part in answer.parts]
        self._admission.drop(group, group.num_rollouts - len(parts))
        set_result(group.prepared, None)
        self._on_read(group)

    def _fail(self, group: RequestGroup, error: Exception) -> None:
        self._admission.remove(group)
        group.fail(error)
