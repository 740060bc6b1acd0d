"""The public object: prompts in, aligned answers out, with models loaded once and shared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal, overload

from stars_engine.algorithm.baselines import PlainDecoding
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import DecodingStrategy
from stars_engine.chat.prompts import as_prompt_list
from stars_engine.config import AlignParams
from stars_engine.engine.arguments import Aligns, Prompts, RewardPrompts, Samplings
from stars_engine.engine.engine_calls import EngineCalls
from stars_engine.engine.recalibration import recalibrated
from stars_engine.engine.streams import AsyncSegmentStream, SegmentStream
from stars_engine.runtime.event_queue import EventQueue
from stars_engine.runtime.limits import within_limits
from stars_engine.runtime.request_group import Outcome, RequestGroup
from stars_engine.schedules import CalibratedSchedule
from stars_engine.types import StarsResult


class StarsEngine(EngineCalls):
    """Aligns text while it is generated.

    An engine is a handle to a runtime: a thread that loads the models at the first call and serves
    any number of threads and event loops. Requests of all callers share its steps. No result
    depends on other requests.

    `StarsEngine(config)` creates its own runtime. `StarsEngine.shared(config)` shares one with
    every handle that has the same language model. A runtime ends when its last handle is
    closed. If the last handle of a shared runtime is garbage-collected instead, the runtime stays
    for `EngineParams.keep_alive_s`.

    Args:
        config: Models, thresholds, sampling and bounds; the default is the embedded pair.
        model: A custom language model that replaces `config.model`.
        reward: A custom reward model that replaces `config.reward`.

    Examples:
        >>> engine = StarsEngine()
        >>> [result] = engine.generate("This movie", sampling=SamplingParams(seed=7))
    """

    # --- generating ---

    @overload
    def generate(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: Literal[False] = False,
        **fields: Any,
    ) -> list[StarsResult]: ...

    @overload
    def generate(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: Literal[True],
        **fields: Any,
    ) -> list[Outcome]: ...

    def generate(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: bool = False,
        **fields: Any,
    ) -> Any:
        """Generate aligned answers, `sampling.n` for each prompt, in the order of the prompts.

        Args:
            prompts: One prompt or a sequence of them.
            sampling: Replaces the config's; one for all prompts, or one for each.
            align: Replaces the config's; one for all prompts, or one for each; or the name of a
                preset.
            reward_prompt: Replaces the prompt for the reward model, for example with the question
                without its documents; one for all prompts, or one for each.
            return_exceptions: Return the error of a failed request as its result. By default, the
                first error is raised when all requests have ended.
            **fields: Fields of `SamplingParams` and `AlignParams` that replace single settings,
                such as `max_tokens=64`.

        Raises:
            PromptError: A prompt is invalid. Nothing is generated, unless the call has more than
                1,024 prompts: answers to the first start before the last are read.
            ContextOverflowError: A prompt and `max_tokens` exceed the context. Likewise.
            QueueFullError: The queue is full and `EngineParams.on_full` is "raise".
            RequestError: A request failed; its `result` holds the accepted text.
        """
        group = self._new_group(prompts, sampling, align, reward_prompt, fields)
        group.return_exceptions = return_exceptions
        self._resolve_thresholds(group)
        return self._results(group)

    async def agenerate(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: bool = False,
        **fields: Any,
    ) -> Any:
        """Generate without blocking the event loop; cancelling the task cancels the requests."""
        group = self._new_group(prompts, sampling, align, reward_prompt, fields)
        group.return_exceptions = return_exceptions
        group.is_abandoned = asyncio.get_running_loop().is_closed
        await self._aresolve_thresholds(group)
        return await asyncio.wrap_future(self._submit(group).future)

    def submit(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: bool = False,
        **fields: Any,
    ) -> Future[list[Any]]:
        """Start generating and return a future; `Future.cancel` cancels the requests.

        Blocks until the queue has admitted all prompts, unless `EngineParams.on_full` is "raise".
        Callbacks of the future run on a thread of their own.
        """
        group = self._new_group(prompts, sampling, align, reward_prompt, fields)
        group.return_exceptions = return_exceptions
        self._resolve_thresholds(group)
        self._submit(group)
        if self.config.engine.on_full == "wait":
            self._wait_for(group.admitted, group)
        return group.future

    def stream(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        **fields: Any,
    ) -> SegmentStream:
        """Stream accepted segments; their texts add up to the text of each result.

        Emitted text never changes. Closing the iterator cancels the requests. Arguments and errors
        are those of `generate`. Prompts are checked before this returns, at most 1,024 of them; an
        error of a later one cancels the other answers. The error of a failed request is raised when
        all other answers have ended.
        """
        group = self._new_group(prompts, sampling, align, reward_prompt, fields)
        group.event_queue = EventQueue()
        self._resolve_thresholds(group)
        stream = SegmentStream(self._submit(group), self._runtime.end_group)
        self._wait_for(group.prepared, group)
        return stream

    def astream(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        **fields: Any,
    ) -> AsyncSegmentStream:
        """Stream for `async for`; leaving or cancelling the loop cancels the requests.

        Generation starts with the first iteration.
        """
        group = self._new_group(prompts, sampling, align, reward_prompt, fields)
        group.event_queue = EventQueue()

        async def start() -> None:
            group.is_abandoned = asyncio.get_running_loop().is_closed
            if not group.cancel_requested:
                await self._aresolve_thresholds(group)
            self._submit(group)

        return AsyncSegmentStream(group, start, self._runtime.end_group)

    def decode(
        self,
        prompts: Prompts,
        decoding: DecodingStrategy,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Generate with another `DecodingStrategy` than STARS; it runs on the engine's thread."""
        group = self._new_group(prompts, sampling, align, reward_prompt)
        group.decoding = decoding
        return self._results(group)

    def resume(self, rollouts: Sequence[Rollout], decoding: DecodingStrategy) -> list[StarsResult]:
        """Continue unfinished answers, see `Rollout.fork`; otherwise like `decode`."""
        self._check_open()
        group = RequestGroup(
            (), self._source, decoding=decoding, owner=self, resumed=tuple(rollouts)
        )
        return self._results(group)

    def vanilla(
        self,
        prompts: Prompts,
        sampling: Samplings = None,
        *,
        reward_prompt: RewardPrompts = None,
        **fields: Any,
    ) -> list[StarsResult]:
        """Sample plainly, with the noise of `generate`; score only the final text."""
        group = self._new_group(prompts, sampling, None, reward_prompt, fields)
        group.decoding = PlainDecoding()
        return self._results(group)

    def best_of_n(
        self,
        prompts: Prompts,
        n: int,
        *,
        sampling: Samplings = None,
        reward_prompt: RewardPrompts = None,
        **fields: Any,
    ) -> list[StarsResult]:
        """Sample `n` whole answers per prompt and return the one with the highest reward."""
        if not isinstance(n, int) or n < 1:
            raise ValueError(
                f"n={n!r} is not allowed; allowed: an integer >= 1. Hint: call "
                "best_of_n(prompts, 16)"
            )
        group = self._new_group(prompts, sampling, None, reward_prompt, fields)
        group.decoding, group.num_samples = PlainDecoding(), n
        return self._results(within_limits(group, self.config.engine))

    def recalibrate(
        self,
        prompts: Prompts | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> CalibratedSchedule:
        """Fit the thresholds again, to the prompts of recent calls, and use them from now on.

        The config's schedule must be an `AutoSchedule` or the result of `calibrate`; the target is
        kept. Calls that pass a schedule of their own are not affected. Takes as long as the first
        calibration. The engine keeps up to 192 prompts of recent calls in memory, and none that is
        longer than 20,000 characters.

        Args:
            prompts: Prompts to fit to, at least 8; None: up to 96 distinct prompts of recent calls.
            progress: Called with the number of stages done and in total.

        Returns:
            The new schedule; `to_file` stores it.

        Raises:
            ConfigError: The schedule was not calibrated, or there are too few prompts.
            RequestError: The reward model failed on a prompt.
        """
        align = self.config.with_thresholds()
        given = None if prompts is None else as_prompt_list(prompts)
        schedule = recalibrated(self, align, self._recent, given, progress)
        own = {name: getattr(align, name) for name in align.model_fields_set}
        self.config = self.config.replace(align=AlignParams(**{**own, "schedule": schedule}))
        return schedule

    async def aresolved_align(self) -> AlignParams:
        """Return the config's acceptance settings with thresholds; calibrate them if necessary.

        A caller that passes them as `align` does not calibrate again, whatever its `sampling`.
        """
        group = self._new_group("", None, None, None)
        await self._aresolve_thresholds(group)
        return group.prompts[0].align
