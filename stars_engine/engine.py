"""The engine: prompts in, aligned answers out, over models that are loaded once and shared."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Literal, overload

from stars_engine.arguments import Aligns, Prompts, RewardPrompts, Samplings, questions_of
from stars_engine.baselines import Plain
from stars_engine.calibration.auto import Wish, calibrations_of
from stars_engine.calibration.settings import warn_of_other_use
from stars_engine.handle import Handle
from stars_engine.loop import warn_of_greedy
from stars_engine.runtime.calls import Call, Mailbox, Outcome, Question
from stars_engine.runtime.waiting import wait_for
from stars_engine.schedules import AutoSchedule
from stars_engine.streams import AsyncSegmentStream, SegmentStream
from stars_engine.trial import Decoding
from stars_engine.types import StarsResult

Wishes = dict[tuple[int, int], Wish]  # by the identities of test and sampling


class StarsEngine(Handle):
    """Aligns text while it is generated.

    A handle on a runtime: one thread that loads the models at the first call and does all work,
    for any number of threads and event loops at once. Answers of all callers share rounds, and none
    depends on the others.

    `StarsEngine(config)` has a runtime of its own; `StarsEngine.shared(config)` shares one with
    every handle whose language model is the same. A runtime ends when its last handle is closed; a
    shared one whose handles were only forgotten stays for `EngineParams.keep_alive_s`.

    Args:
        config: Models, thresholds, sampling and bounds; the default is the embedded pair.
        model: A language model of your own in place of `config.model`.
        reward: A reward model of your own in place of `config.reward`.

    Examples:
        >>> engine = StarsEngine()
        >>> [result] = engine.generate("This movie", sampling=SamplingParams(seed=7))
    """

    # --- generating ---

    @overload
    def generate(
        self,
        prompts: Prompts,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: Literal[False] = False,
    ) -> list[StarsResult]: ...

    @overload
    def generate(
        self,
        prompts: Prompts,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: Literal[True],
    ) -> list[Outcome]: ...

    def generate(
        self,
        prompts: Prompts,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: bool = False,
    ) -> Any:
        """Return aligned answers, prompt by prompt, `sampling.n` for each.

        Args:
            prompts: One prompt or a sequence of them.
            sampling: In place of the config's; one for all prompts, or one each.
            align: In place of the config's; one for all prompts, or one each.
            reward_prompt: What the reward model reads instead of the prompt, such as the question
                without its documents; one for all prompts, or one each.
            return_exceptions: Put the error of a failed request in its place, instead of raising
                the first one when all have ended.

        Raises:
            PromptError: A prompt cannot be used; nothing has been generated.
            ContextOverflowError: A prompt and `max_tokens` exceed the context; likewise.
            QueueFullError: The queue is full and `EngineParams.on_full` is "raise".
            RequestError: A request failed; its `result` holds what was accepted.
        """
        call = self._call(prompts, sampling, align, reward_prompt)
        call.return_exceptions = return_exceptions
        self._settle_thresholds(call)
        return self._wait(self._submit(call))

    async def agenerate(
        self,
        prompts: Prompts,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: bool = False,
    ) -> Any:
        """Do what `generate` does without blocking the event loop; cancelling it ends the work."""
        call = self._call(prompts, sampling, align, reward_prompt)
        call.return_exceptions = return_exceptions
        call.is_abandoned = asyncio.get_running_loop().is_closed
        await self._asettle_thresholds(call)
        return await asyncio.wrap_future(self._submit(call).future)

    def submit(
        self,
        prompts: Prompts,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
        return_exceptions: bool = False,
    ) -> Future[list[Any]]:
        """Begin what `generate` does and return a future; `Future.cancel` ends the work.

        Blocks until all prompts have found room in the queue, unless `EngineParams.on_full` is
        "raise". Callbacks of the future run on the engine's thread: they must be short, and not
        call the engine.
        """
        call = self._call(prompts, sampling, align, reward_prompt)
        call.return_exceptions = return_exceptions
        self._settle_thresholds(call)
        self._submit(call)
        if self.config.engine.on_full == "wait":
            self._wait_for(call.entered, call)
        return call.future

    def stream(
        self,
        prompts: Prompts,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
    ) -> SegmentStream:
        """Yield accepted segments as they come; texts add up to each result's text.

        Nothing emitted is ever taken back. Closing the iterator ends the work. Arguments and errors
        are those of `generate`; prompts are checked at once, and the error of a failed request is
        raised when the other answers have ended.
        """
        call = self._call(prompts, sampling, align, reward_prompt)
        call.mailbox = Mailbox()
        self._settle_thresholds(call)
        stream = SegmentStream(self._submit(call), self._runtime.end_call)
        self._wait_for(call.prepared, call)
        return stream

    def astream(
        self,
        prompts: Prompts,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
    ) -> AsyncSegmentStream:
        """Do what `stream` does for `async for`; leaving the loop, or cancelling it, ends the work.

        The work begins with the first step.
        """
        call = self._call(prompts, sampling, align, reward_prompt)
        call.mailbox = Mailbox()

        async def begin() -> None:
            call.is_abandoned = asyncio.get_running_loop().is_closed
            if not call.ended:
                await self._asettle_thresholds(call)
            self._submit(call)

        return AsyncSegmentStream(call, begin, self._runtime.end_call)

    def decode(
        self,
        prompts: Prompts,
        decoding: Decoding,
        *,
        sampling: Samplings = None,
        align: Aligns = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Make text of drafts in another way than STARS does; see `Decoding`.

        It runs on the engine's thread, in rounds with everybody else's answers.
        """
        call = self._call(prompts, sampling, align, reward_prompt)
        call.decoding = decoding
        decoding.expect(call.num_answers)
        results: list[StarsResult] = self._wait(self._submit(call))
        return results

    def vanilla(
        self,
        prompts: Prompts,
        *,
        sampling: Samplings = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Sample plainly, by the noise of `generate`; the final text's reward is reported."""
        return self.decode(prompts, Plain(), sampling=sampling, reward_prompt=reward_prompt)

    def best_of_n(
        self,
        prompts: Prompts,
        n: int,
        *,
        sampling: Samplings = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Sample `n` whole answers per prompt and return the one of highest reward."""
        if n < 1:
            raise ValueError(f"n={n}: Best-of-N needs at least 1 sample; for example n=16")
        call = self._call(prompts, sampling, None, reward_prompt)
        call.decoding, call.num_samples = Plain(), n
        results: list[StarsResult] = self._wait(self._submit(call))
        return results

    # --- inside ---

    def _call(
        self, prompts: Prompts, sampling: Samplings, align: Aligns, reward_prompt: RewardPrompts
    ) -> Call:
        self._check_open()
        questions = questions_of(
            self.config, prompts, sampling=sampling, align=align, reward_prompt=reward_prompt
        )
        return Call(
            questions,
            self._source,
            prompt_format=self.config.prompt_format,
            template_kwargs=self.config.chat_template_kwargs,
            owner=self,
        )

    def _settle_thresholds(self, call: Call) -> None:
        """Put calibrated thresholds in the place of each `AutoSchedule`; may take minutes.

        A request's time, and its deadline, begin afterwards.
        """
        if not call.wants_thresholds:
            return
        self._runtime.check_may_wait()
        wishes = self._ask_for_thresholds(call)
        with _none_left_waiting(wishes):
            for wish in wishes.values():
                wait_for(wish.future)
        _put_thresholds(call, wishes)

    async def _asettle_thresholds(self, call: Call) -> None:
        """Do the same without a thread that waits; cancelling it is free at once."""
        if not call.wants_thresholds:
            return
        await self.aload()  # what is to be found depends on the models
        wishes = self._ask_for_thresholds(call)
        with _none_left_waiting(wishes):
            for wish in wishes.values():
                await asyncio.wrap_future(wish.future)
        _put_thresholds(call, wishes)

    def _ask_for_thresholds(self, call: Call) -> Wishes:
        portable = self._again is not None and not (
            self.config.model.is_live or self.config.reward.is_live
        )
        wishes: Wishes = {}
        for question in call.questions:
            if isinstance(question.align.schedule, AutoSchedule) and (
                _wish_key(question) not in wishes
            ):
                wishes[_wish_key(question)] = calibrations_of(self._runtime).ask(
                    self,
                    question.align,
                    question.sampling or self.sampling,
                    reward_key=self._source.key,
                    portable=portable,
                )
        return wishes

    def _submit(self, call: Call) -> Call:
        self._runtime.check_may_wait()
        if call.judged:
            warn_of_greedy(
                (question.sampling, question.align)
                for question in call.questions
                if question.sampling is not None
            )
            for question in call.questions:
                warn_of_other_use(self.config, question.align, question.sampling)
        self._runtime.submit(call, wait=self.config.engine.on_full == "wait")
        return call

    def _wait(self, call: Call) -> Any:
        return self._wait_for(call.future, call)

    def _wait_for(self, future: Future[Any], call: Call) -> Any:
        try:
            return wait_for(future)
        except BaseException:  # a KeyboardInterrupt among them: nobody waits any more
            call.cancel()
            raise


def _wish_key(question: Question) -> tuple[int, int]:
    """Tell pairs of test and sampling apart; prompts of one call share the objects."""
    return id(question.align), id(question.sampling)


@contextmanager
def _none_left_waiting(wishes: Wishes) -> Iterator[None]:
    """Wait for no threshold any more once one has failed, or the caller gives up."""
    try:
        yield
    except BaseException:
        for wish in wishes.values():
            wish.future.cancel()
        raise


def _put_thresholds(call: Call, wishes: Wishes) -> None:
    """Put what was found in the place of each `AutoSchedule`; the call's time begins now."""
    found = {key: wish.fulfilled() for key, wish in wishes.items()}
    call.questions = tuple(
        dataclasses.replace(question, align=found.get(_wish_key(question), question.align))
        for question in call.questions
    )
    call.submitted_s = time.monotonic()
