"""Process the inputs of admitted request groups: load their models and read their prompts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.core.memory_budget import MemoryBudget
from stars_engine.core.request_errors import as_request_error
from stars_engine.rewards.base import RewardModel
from stars_engine.runtime.admission_queue import AdmissionQueue
from stars_engine.runtime.request_group import RequestGroup, RewardSource
from stars_engine.runtime.rollout_creation import read_prompts, unread_prompts
from stars_engine.threads.background_threads import BackgroundThreads
from stars_engine.threads.future_outcomes import set_result

GetModels = Callable[[RewardSource, float], tuple[PromptedModel, RewardModel]]


class InputProcessor:
    """Loads models and reads prompts, a few at a time. Runs on the engine's thread.

    Args:
        admission: The queue that has admitted the groups.
        get_models: Loads the models of a source; takes the source and the time of the request.
        on_read: Called with each group whose prompts are all read.
        params: Limits on the number of candidates and the length of a rollout.
        background: Prepares large inputs.
        post: Runs a callable on the engine's thread.
    """

    def __init__(
        self,
        admission: AdmissionQueue,
        get_models: GetModels,
        on_read: Callable[[RequestGroup], None],
        *,
        params: EngineParams,
        background: BackgroundThreads,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._admission, self._get_models, self._on_read = admission, get_models, on_read
        self._params, self._background, self._post = params, background, post
        self._ready: deque[RequestGroup] = deque()
        self._waiting_for: dict[RequestGroup, Future[Any]] = {}  # what a group waits for

    @property
    def has_work(self) -> bool:
        """Whether a group can be read now."""
        return bool(self._ready)

    def add(self, group: RequestGroup) -> None:
        """Add a group: load its models and start to read its prompts."""
        try:
            model, reward = self._get_models(group.reward, group.submitted_s)
        except BaseException as error:  # noqa: BLE001 - loading runs third-party code
            self._fail(group, error)
            return
        group.reward_model = reward
        budget = MemoryBudget(
            model,
            max_tokens=self._params.max_prefix_tokens,
            max_bytes=self._params.max_cache_bytes,
        )
        group.reading = read_prompts(
            group, model, self._background, max_rows=self._params.max_rows, budget=budget
        )
        self._ready.append(group)

    def abort(self, group: RequestGroup) -> None:
        """Stop reading the prompts of a group; give it answers that never start."""
        if group in self._ready:
            self._ready.remove(group)
        prepared = self._waiting_for.pop(group, None)
        if prepared is not None:
            prepared.cancel()
        group.forget_prompts()
        unread_prompts(group)

    def read(self, until_s: float) -> None:
        """Read prompts until a time on the monotonic clock, one of each group in turn."""
        while self._ready:
            group = self._ready.popleft()
            assert group.reading is not None
            try:
                found = next(group.reading, "done")
            except BaseException as error:  # noqa: BLE001 - custom models are third-party code
                self._fail(group, error)
                continue
            if found == "done":
                self._end(group)
            elif isinstance(found, Future):
                self._waiting_for[group] = found
                found.add_done_callback(partial(self._post_prepared, group))
            else:
                self._ready.append(group)
            if time.monotonic() >= until_s:
                return

    def _post_prepared(self, group: RequestGroup, _: Future[Any]) -> None:
        self._post(partial(self._on_prepared, group))

    def _on_prepared(self, group: RequestGroup) -> None:
        """Continue to read a group, unless it has ended."""
        if self._waiting_for.pop(group, None) is not None:
            self._ready.append(group)

    def _end(self, group: RequestGroup) -> None:
        """Finish a group whose prompts are all read: fail it as a whole, or pass it on."""
        group.reading = None
        error = group.first_error
        if error is not None and not group.return_exceptions:
            self._fail(group, error)
            return
        self._admission.drop(group, group.num_rollouts - group.pending.num_rollouts)
        set_result(group.prepared, None)
        self._on_read(group)

    def _fail(self, group: RequestGroup, error: BaseException) -> None:
        """End a group with an error; an exit of third-party code becomes an ordinary one."""
        if not isinstance(error, Exception):
            error = as_request_error(error, "preparing the request")
        self._admission.remove(group)
        group.reading, group.ended = None, True
        group.fail(error)
