"""The engine: prompts in, aligned answers out, over models that are loaded once and shared."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Any, Literal, Self, TypeVar, overload

from stars_engine.backends.base import PromptedModel
from stars_engine.baselines import Plain
from stars_engine.calibration.auto import Wish, calibrations_of
from stars_engine.calibration.settings import warn_of_other_use
from stars_engine.chat.prompts import as_prompt_list
from stars_engine.chat.template import has_template
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.errors import (
    ConfigError,
    EngineClosedError,
    Problem,
    PromptError,
    needs_extra,
)
from stars_engine.loop import warn_of_greedy
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.loading import load_reward
from stars_engine.runtime.calls import Call, Mailbox, Outcome, Question, RewardSource
from stars_engine.runtime.registry import key_of, shared_runtime
from stars_engine.runtime.runtime import Runtime
from stars_engine.runtime.stats import EngineStats
from stars_engine.runtime.waiting import wait_for
from stars_engine.schedules import AutoSchedule
from stars_engine.schema import Schema
from stars_engine.streams import AsyncSegmentStream, SegmentStream
from stars_engine.trial import Decoding
from stars_engine.types import Chat, Prompt, StarsResult

Prompts = Prompt | Sequence[Prompt]
RewardPrompts = str | Chat | Sequence[str | Chat | None] | None
Samplings = SamplingParams | Sequence[SamplingParams] | None
Aligns = AlignParams | Sequence[AlignParams] | None
Wishes = dict[tuple[int, int], Wish]  # by the identities of test and sampling
Params = TypeVar("Params", bound=Schema)


class StarsEngine:
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

    Example:
        >>> engine = StarsEngine()
        >>> [result] = engine.generate("This movie", sampling=SamplingParams(seed=7))
    """

    def __init__(
        self,
        config: StarsConfig | None = None,
        *,
        model: PromptedModel | None = None,
        reward: RewardModel | None = None,
    ) -> None:
        config = StarsConfig() if config is None else config
        own_parts = model is not None or reward is not None
        if own_parts and "align" not in config.model_fields_set:
            # The default thresholds are the embedded pair's, and mean nothing to other models.
            config = config.replace(align=AlignParams(schedule=AutoSchedule()))
        load = partial(_load_model, config) if model is None else lambda: model
        source = _reward_source(config) if reward is None else _own_reward(reward)
        runtime = Runtime(load, config.engine)
        runtime.acquire(source.key)
        self._open(config, runtime, source, again=None if own_parts else type(self))

    @classmethod
    def shared(cls, config: StarsConfig | None = None) -> Self:
        """Return a light handle on the runtime that has this config's language model loaded.

        The models are loaded once, whoever asks first; sampling, thresholds and reward are the
        handle's own.

        Raises:
            ConfigError: `config.engine` sets bounds other than those the runtime runs with.
        """
        config = StarsConfig() if config is None else config
        source = _reward_source(config)
        runtime = shared_runtime(config, partial(_load_model, config), source.key)
        engine = cls.__new__(cls)
        engine._open(config, runtime, source, again=cls.shared)  # noqa: SLF001 - its own class
        return engine

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

    # --- models ---

    def load(self) -> Self:
        """Load both models now; later calls return at once."""
        self._models()
        return self

    async def aload(self) -> Self:
        """Load both models now, without blocking the event loop."""
        self._check_open()
        await asyncio.wrap_future(self._runtime.load(self._source))
        return self

    @property
    def model(self) -> PromptedModel:
        """The language model, loaded on first use."""
        return self._models()[0]

    @property
    def reward(self) -> RewardModel:
        """The reward model, loaded on first use."""
        return self._models()[1]

    @property
    def is_loaded(self) -> bool:
        """Whether both models are loaded, so that asking for them waits for nothing."""
        return not self.closed and self._runtime.loaded(self._source) is not None

    @property
    def sampling(self) -> SamplingParams:
        """Sampling where a call gives none: the config's, or the model's own."""
        if self.config.sampling == "model":
            return self.model.default_sampling()
        return self.config.sampling

    @property
    def has_chat_template(self) -> bool:
        """Whether the language model brings a chat template; loads it on first use."""
        return has_template(self.model.codec)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._finalizer.alive

    @property
    def pilot_lock(self) -> Lock:
        """Held by the one calibration that may run on the runtime at a time."""
        return self._runtime.pilot_lock

    def stats(self) -> EngineStats:
        """Return what the runtime is doing and has done, for all its handles."""
        return self._runtime.stats()

    def close(self) -> None:
        """Let go of the models; further calls raise `EngineClosedError`.

        The last handle of a runtime ends it: what is in progress fails with `EngineClosedError`.
        """
        if self._finalizer.detach() is not None:
            self._runtime.release(self._source.key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., StarsEngine], tuple[StarsConfig]]:
        if self._again is None:
            raise TypeError(
                "an engine with a model or reward of your own cannot be pickled or copied. Cure: "
                "make it anew with StarsEngine(config, model=..., reward=...)"
            )
        return self._again, (self.config,)

    def __deepcopy__(self, memo: dict[int, Any]) -> StarsEngine:
        make, arguments = self.__reduce__()
        return make(*arguments)

    # --- inside ---

    def _open(
        self,
        config: StarsConfig,
        runtime: Runtime,
        source: RewardSource,
        *,
        again: Callable[..., StarsEngine] | None,
    ) -> None:
        self.config = config
        self._runtime, self._source = runtime, source
        self._again = again  # makes an equal handle, for copies and pickles
        self._finalizer = weakref.finalize(self, runtime.release_later, source.key)
        self._finalizer.atexit = False

    def _check_open(self) -> None:
        if self.closed:
            raise EngineClosedError("this engine is closed. Cure: make a new StarsEngine(config)")
        self._runtime.check_process()

    def _models(self) -> tuple[PromptedModel, RewardModel]:
        self._check_open()
        loaded = self._runtime.loaded(self._source)
        if loaded is not None:  # without a word to the thread, which may be in a long round
            return loaded
        self._runtime.check_may_wait()
        models: tuple[PromptedModel, RewardModel] = wait_for(self._runtime.load(self._source))
        return models

    def _call(
        self, prompts: Prompts, sampling: Samplings, align: Aligns, reward_prompt: RewardPrompts
    ) -> Call:
        self._check_open()
        prompt_list = as_prompt_list(prompts)
        count = len(prompt_list)
        own = None if self.config.sampling == "model" else self.config.sampling
        samplings = _each("sampling", SamplingParams, sampling, own, count)
        aligns = _each("align", AlignParams, align, self.config.align, count)
        questions = tuple(
            Question(prompt, shown, proposal, self.config.with_thresholds(test))
            for prompt, shown, proposal, test in zip(
                prompt_list, _one_each(reward_prompt, count), samplings, aligns, strict=True
            )
        )
        return Call(questions, self._source, prompt_format=self.config.prompt_format, owner=self)

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


def _load_model(config: StarsConfig) -> PromptedModel:
    with needs_extra("local"):
        from stars_engine.backends.transformers import TransformersBackend
    return TransformersBackend(config.model)


def _reward_source(config: StarsConfig) -> RewardSource:
    def load(model: PromptedModel) -> RewardModel:
        return load_reward(config.reward, model.codec.fingerprint())

    return RewardSource(key_of(config.reward), load)


def _own_reward(reward: RewardModel) -> RewardSource:
    return RewardSource(f"own {id(reward)}", lambda _: reward)


def _each(
    name: str,
    kind: type[Params],
    given: Params | Sequence[Params] | None,
    default: Params | None,
    count: int,
) -> Sequence[Params | None]:
    """Return one setting per prompt: the given one, the given ones, or the default."""
    if given is None:
        return [default] * count
    if isinstance(given, kind):
        return [given] * count
    cure = f"give {kind.__name__}(...) for all prompts, or a list with one for each"
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise _problem(name, f"{type(given).__name__} is not allowed; {cure}")
    if len(given) != count:
        raise _problem(name, f"{len(given)} settings for {count} prompts; {cure}")
    for item in given:
        if not isinstance(item, kind):
            raise _problem(name, f"{type(item).__name__} is not allowed in the list; {cure}")
    return given


def _one_each(reward_prompt: RewardPrompts, count: int) -> Sequence[str | Chat | None]:
    if reward_prompt is None or isinstance(reward_prompt, str | Chat):
        return [reward_prompt] * count
    if len(reward_prompt) != count:
        raise PromptError(
            f"{len(reward_prompt)} reward prompts for {count} prompts. Cure: give one for all, or "
            "a list with one for each (None where the prompt itself is meant)"
        )
    return reward_prompt


def _problem(field: str, message: str) -> ConfigError:
    return ConfigError("StarsEngine", [Problem(field, message)])
