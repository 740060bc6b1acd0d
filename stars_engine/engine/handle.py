"""A handle to a runtime: it knows the models, gives access to them, and releases the runtime."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from stars_engine.backends.base import ModelFacts, PromptedModel
from stars_engine.config import (
    AlignParams,
    OpenAIServerModel,
    SamplingParams,
    StarsConfig,
    TransformersModel,
    VLLMModel,
)
from stars_engine.display.cell_progress import Stage, cell_progress
from stars_engine.display.pages import table
from stars_engine.engine.parts import check_parts, part_names
from stars_engine.engine.recalibration import RecentPrompts
from stars_engine.engine.scores import ScoreCall, TextScore
from stars_engine.errors import EngineClosedError, needs_extra
from stars_engine.messages import Chat
from stars_engine.protocols import read_optional
from stars_engine.remote.client import ServerClient
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.loading import check_reward, load_reward
from stars_engine.rewards.reward_requests import single_models
from stars_engine.runtime.blocking_wait import wait_for
from stars_engine.runtime.registry import key_of, shared_runtime
from stars_engine.runtime.request_group import RewardSource
from stars_engine.runtime.runtime import Runtime
from stars_engine.runtime.stats import EngineStats
from stars_engine.schedules import AutoSchedule
from stars_engine.tokenization.added_tokens import template_sources
from stars_engine.types import Prompt


class Handle:
    """Keeps a runtime alive while it is open; the base class of `StarsEngine`."""

    _facts_by_files: ModelFacts | None = None

    def __init__(
        self,
        config: StarsConfig | None = None,
        *,
        model: PromptedModel | None = None,
        reward: RewardModel | None = None,
    ) -> None:
        config = StarsConfig() if config is None else config
        check_parts(config, model=model, reward=reward)
        own_parts = model is not None or reward is not None
        if own_parts and "align" not in config.model_fields_set:
            # The default thresholds fit only the embedded models.
            config = config.replace(align=AlignParams(schedule=AutoSchedule()))
        load_model = _load_checked if reward is None else _load_model
        load = partial(load_model, config) if model is None else lambda: model
        source = _reward_source(config) if reward is None else _own_reward(reward)
        runtime = Runtime(load, config.engine)
        runtime.acquire(source.key)
        names = part_names(config, {"model": model, "reward": reward})
        factory = None if own_parts else type(self)
        self._open(config, runtime, source, names=names, factory=factory)

    @classmethod
    def shared(cls, config: StarsConfig | None = None) -> Self:
        """Return a handle to the shared runtime of this config's language model.

        The language model is loaded once for all handles. Sampling, thresholds and reward belong
        to the handle.

        Raises:
            ConfigError: `config.engine` sets limits that differ from those of the runtime.
        """
        config = StarsConfig() if config is None else config
        check_parts(config)
        source = _reward_source(config)
        runtime = shared_runtime(config, partial(_load_checked, config), source.key)
        engine = cls.__new__(cls)
        names = part_names(config, {})
        engine._open(config, runtime, source, names=names, factory=cls.shared)  # noqa: SLF001 - own
        return engine

    # --- models ---

    def load(self) -> Self:
        """Load both models now. Later calls return at once."""
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
        """Whether both models are loaded, so that accessing them does not block."""
        return not self.closed and self._runtime.loaded(self._source) is not None

    @property
    def sampling(self) -> SamplingParams:
        """Default sampling parameters: the config's, or the model's if the config says "model"."""
        if self.config.sampling == "model":
            return self.facts.default_sampling()
        return self.config.sampling

    @property
    def facts(self) -> ModelFacts:
        """Facts about the language model, from the loaded model or else from its config files."""
        self._check_open()
        if not self.is_loaded and self._factory is not None:
            model_config = self.config.model
            if self._facts_by_files is None and isinstance(model_config, TransformersModel):
                with needs_extra("local"):
                    from stars_engine.backends.facts import read_facts
                self._facts_by_files = read_facts(model_config)
            if self._facts_by_files is not None:
                return self._facts_by_files
        model = self.model
        template = "\n".join(template_sources(model.codec.tokenizer))
        return ModelFacts(model.context_len, bool(template), model.default_sampling, template)

    @property
    def has_chat_template(self) -> bool:
        """Whether the language model has a chat template."""
        return self.facts.has_chat_template

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or the runtime has ended, as after its thread failed."""
        return self._runtime.closed or not self._finalizer.alive

    async def ascore(
        self,
        prompt: Prompt,
        texts: Sequence[str],
        *,
        segment_len: int | None = None,
        reward_prompt: str | Chat | None = None,
    ) -> list[TextScore]:
        """Score given answers to a prompt with the reward model, in order.

        Args:
            prompt: The prompt.
            texts: The answers. They are tokenized from their text, so their tokens may differ from
                those that a model drafted.
            segment_len: Also score the beginnings of each answer that end with a segment of this
                many tokens; None does not.
            reward_prompt: Replaces the prompt for the reward model.

        Raises:
            PromptError: The prompt or an answer is invalid.
            ConfigError: There are more answers than `EngineParams.max_answers`.
            RewardError: The reward model failed, or cannot score given texts.
        """
        self._check_open()
        config = self.config
        call = ScoreCall(
            prompt,
            texts,
            segment_len,
            config.prompt_format,
            config.chat_template_kwargs,
            reward_prompt,
        )
        call.check_size(config.engine)
        scoring = self._runtime.score(self._source, call.inputs, in_background=call.is_large)
        scores = await asyncio.wrap_future(scoring)
        return call.results(scores)

    async def aunavailable_servers(self) -> list[str]:
        """Return the servers of each model that cannot be reached.

        A model cannot be reached if none of its servers answers.

        Returns:
            One string per such model: the URLs of its servers, separated by commas. Empty if a
            server of each model answers, if the models run in this process, or before they are
            loaded.
        """
        loaded = None if self.closed else self._runtime.loaded(self._source)
        if loaded is None:
            return []
        parts = [loaded[0], *single_models(loaded[1])]
        found = (read_optional(part, "client") for part in parts)
        clients = [each for each in found if isinstance(each, ServerClient)]
        states = [asyncio.wrap_future(each.submit(each.is_available())) for each in clients]
        return [
            ", ".join(each.server.base_url)
            for each, is_available in zip(clients, await asyncio.gather(*states), strict=True)
            if not is_available
        ]

    def stats(self) -> EngineStats:
        """Return the state and the totals of the runtime, over all its handles."""
        return self._runtime.stats()

    def close(self, timeout_s: float | None = None) -> None:
        """Release the runtime; further calls raise `EngineClosedError`.

        Closing the last handle ends the runtime: requests in progress fail with
        `EngineClosedError`.

        Args:
            timeout_s: Maximum wait in seconds for the end of the current step, in case a model
                hangs; None for no limit. The log says where a thread hangs that does not end. 0
                does not wait, and logs nothing.
        """
        if self._finalizer.detach() is not None:
            self._runtime.release(self._source.key, timeout_s)

    def __repr__(self) -> str:
        names = " ".join(f"{name}={shown!r}" for name, shown in self._part_names.items())
        return f"<{type(self).__name__} {names}, {self._state}>"

    def _repr_html_(self) -> str:
        """Return the models, the thresholds and the state for a notebook."""
        schedule = repr(self.config.with_thresholds().schedule)
        rows = {**self._part_names, "schedule": schedule, "state": self._state}
        return table(("", "engine"), rows.items())

    @property
    def _state(self) -> str:
        return "closed" if self.closed else "loaded" if self.is_loaded else "not loaded"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Handle], tuple[StarsConfig]]:
        if self._factory is None:
            raise TypeError(
                "an engine with a custom model or reward object cannot be pickled or copied. Hint: "
                "create a new one with StarsEngine(config, model=..., reward=...)"
            )
        return self._factory, (self.config,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        make, arguments = self.__reduce__()
        return make(*arguments)

    # --- inside ---

    def _open(
        self,
        config: StarsConfig,
        runtime: Runtime,
        source: RewardSource,
        *,
        names: Mapping[str, str],
        factory: Callable[..., Handle] | None,
    ) -> None:
        self.config = config
        self._runtime, self._source = runtime, source
        self._recent = RecentPrompts()
        self._part_names = names
        self._factory = factory  # creates an equal handle, for copies and pickles
        self._finalizer = weakref.finalize(self, runtime.release_later, source.key)
        self._finalizer.atexit = False

    def _check_open(self) -> None:
        if self.closed:
            raise EngineClosedError("this engine is closed. Hint: create a new StarsEngine(config)")
        self._runtime.check_process()

    def _models(self) -> tuple[PromptedModel, RewardModel]:
        self._check_open()
        loaded = self._runtime.loaded(self._source)
        if loaded is not None:  # the engine thread, which may be in a long step, is not needed
            return loaded
        self._runtime.check_can_wait()
        loading = self._runtime.load(self._source)
        with cell_progress(lambda: Stage("loading the models")) as show:
            models: tuple[PromptedModel, RewardModel] = wait_for(loading, show)
        return models


def check_models(config: StarsConfig) -> None:
    """Check what can be checked before anything is loaded: functions and directories.

    Raises:
        ModelLoadError: A function cannot be imported, or a directory does not exist.
    """
    check_reward(config.reward)
    if isinstance(config.model, TransformersModel):
        with needs_extra("local"):
            from stars_engine.loading.sources import check_local
        check_local(config.model)


def _load_checked(config: StarsConfig) -> PromptedModel:
    """Load the language model, but first check the reward, because loading takes long."""
    check_reward(config.reward)
    return _load_model(config)


def _load_model(config: StarsConfig) -> PromptedModel:
    if isinstance(config.model, OpenAIServerModel):
        with needs_extra("remote"):
            from stars_engine.backends.server import ServerBackend
        return ServerBackend(config.model)
    if isinstance(config.model, VLLMModel):
        with needs_extra("vllm"):
            from stars_engine.backends.vllm import VLLMBackend
        return VLLMBackend(config.model)
    with needs_extra("local"):
        from stars_engine.loading.sources import check_local
    check_local(config.model)
    with needs_extra("local"):
        from stars_engine.backends.transformers import TransformersBackend
    return TransformersBackend(config.model)


def _reward_source(config: StarsConfig) -> RewardSource:
    def load(model: PromptedModel) -> RewardModel:
        return load_reward(config.reward, model.codec.fingerprint(), model)

    return RewardSource(key_of(config.reward), load)


def _own_reward(reward: RewardModel) -> RewardSource:
    return RewardSource(f"own {id(reward)}", lambda _: reward)
