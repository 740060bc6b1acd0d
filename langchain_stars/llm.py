"""`StarsLLM`: a LangChain LLM on top of the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, Self

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
    Callbacks,
)
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import SkipValidation

from langchain_stars.errors import as_langchain_errors
from langchain_stars.fields import StarsFields, all_at_once
from langchain_stars.messages import read_messages
from langchain_stars.outputs import generation_chunk_of, generation_of, llm_output_of
from stars_engine import Chat, RenderedPrompt, StarsConfig, StarsResult
from stars_engine.integrations import asettled, refuse_several_answers, settled, short_identity
from stars_engine.types import Prompt

_OF_RUN = ("tags", "metadata", "run_name", "run_id")


class StarsLLM(StarsFields, BaseLLM):
    """A local language model that a reward model steers during generation.

    Setup:
        Install `stars-engine[local,langchain]`. No key and no server are needed. The models are
        loaded at the first call. All instances in a process share one engine per language model.

    Key init args:
        model: The language model: a name, a folder, or a `TransformersModel`.
        reward: The reward model: a name, a config such as `ClassifierReward`, or a function of
            prompt and completion.
        temperature: Softness of sampling; 0 is greedy.
        max_tokens: The longest answer.
        stop: Strings that end an answer.
        prompt_format: How strings are read: "chat", "raw", "rendered", or "auto".
        config: A whole `StarsConfig`, which the other fields override.

        All fields of the parts of `StarsConfig` are available by name, here and per call (`bind`,
        `invoke`, `configurable_fields`); unknown names raise an error.

    Instantiate:
        ```python
        from langchain_stars import StarsLLM

        llm = StarsLLM(max_tokens=24, seed=7)  # the small pair inside the package
        ```

    Invoke:
        Prompts that are messages are rendered with the model's chat template. A prompt that a
        template has already rendered is a `stars_engine.RenderedPrompt`. Calls also accept
        `reward_prompt`, which replaces the prompt for the reward model, for example with the
        question without its documents.

        ```python
        print(llm.invoke("The acting in this movie"))
        print(llm.batch(["The plot", "The music"]))
        ```

    Stream:
        ```python
        for text in llm.stream("The plot"):
            print(text, end="")
        ```

    Async:
        ```python
        import asyncio

        print(asyncio.run(llm.ainvoke("The plot")))
        ```

    Response metadata:
        ```python
        [[generation]] = llm.generate(["The music"]).generations
        print(generation.generation_info["reward"], generation.generation_info["usage"])
        ```
    """

    _kind: ClassVar[Literal["llm", "chat"]] = "llm"

    # --- LangChain's public methods ---

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answer prompts as one engine batch; the keywords are part of the cache key."""
        with self._identified_by(kwargs):
            return super().generate(prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Do the same without blocking the event loop."""
        with self._identified_by(kwargs):
            return await super().agenerate(prompts, stop, callbacks, **kwargs)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Answer inputs as one engine batch.

        With `return_exceptions`, each input is a separate call, so that a failure does not affect
        the others; the engine runs them in shared steps.
        """
        if not return_exceptions:
            return super().batch(inputs, config, **kwargs)
        configs = all_at_once(config, len(inputs))
        return Runnable.batch(self, inputs, configs, return_exceptions=True, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Do the same without blocking the event loop."""
        if not return_exceptions:
            return await super().abatch(inputs, config, **kwargs)
        return await Runnable.abatch(self, inputs, config, return_exceptions=True, **kwargs)

    def generate_prompt(self, prompts: list[PromptValue], *args: Any, **kwargs: Any) -> LLMResult:
        """Answer prompts; messages are rendered with the chat template."""
        return super().generate_prompt([_kept(prompt) for prompt in prompts], *args, **kwargs)

    async def agenerate_prompt(
        self, prompts: list[PromptValue], *args: Any, **kwargs: Any
    ) -> LLMResult:
        """Do the same without blocking the event loop."""
        prompts = [_kept(prompt) for prompt in prompts]
        return await super().agenerate_prompt(prompts, *args, **kwargs)

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        owner, kwargs = _call_under_way.get()
        if owner is not self:
            return super()._identifying_params
        stated = short_identity(self._settings(None, self._of_engine(kwargs)))
        given = {"trace": self.trace, **kwargs}
        return stated | {
            name: given[name] for name in ("reward_prompt", "trace") if given.get(name)
        }

    @contextmanager
    def _identified_by(self, kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Make the keywords of a call part of the identity, which LangChain's caches omit."""
        given = {name: value for name, value in kwargs.items() if name not in _OF_RUN}
        token = _call_under_way.set((self, given))
        try:
            yield
        finally:
            _call_under_way.reset(token)

    def _convert_input(self, model_input: LanguageModelInput | RenderedPrompt) -> PromptValue:
        if isinstance(model_input, RenderedPrompt):
            return _Rendered(text=_RenderedText(model_input))
        return _kept(super()._convert_input(model_input))

    # --- whole answers ---

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        settings, call = self._call(stop, kwargs)
        with as_langchain_errors():
            results = self.engine(settings).generate(_read_all(prompts), **call)
        return _llm_result(results, len(prompts), settings, trace=kwargs.get("trace", self.trace))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        settings, call = self._call(stop, kwargs)
        with as_langchain_errors():
            results = await self.engine(settings).agenerate(_read_all(prompts), **call)
        return _llm_result(results, len(prompts), settings, trace=kwargs.get("trace", self.trace))

    # --- streaming ---

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        settings, call = self._call(stop, kwargs)
        refuse_several_answers(settings)
        [asked] = _read_all([prompt])
        trace = kwargs.get("trace", self.trace)
        with as_langchain_errors(), closing(self.engine(settings).stream(asked, **call)) as events:
            for event in settled(events):
                chunk = generation_chunk_of(event, trace=trace)
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        settings, call = self._call(stop, kwargs)
        refuse_several_answers(settings)
        [asked] = _read_all([prompt])
        trace = kwargs.get("trace", self.trace)
        with as_langchain_errors():
            async with self.engine(settings).astream(asked, **call) as events:
                async for event in asettled(events):
                    chunk = generation_chunk_of(event, trace=trace)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk


_call_under_way: ContextVar[tuple[StarsLLM | None, Mapping[str, Any]]] = ContextVar(
    "call_under_way", default=(None, {})
)


class _ConversationText(str):  # noqa: SLOT000 - it has a field
    """A conversation as a string, because LangChain passes only text to an LLM."""

    messages: list[BaseMessage]

    def __new__(cls, messages: Sequence[BaseMessage]) -> Self:
        turns = [
            turn.model_dump(mode="json", exclude_defaults=True) for turn in read_messages(messages)
        ]
        # The noncharacter keeps caches from confusing it with a prompt of the same text.
        encoded = "\ufdd0" + json.dumps({"messages": turns}, ensure_ascii=False)
        text = super().__new__(cls, encoded)
        text.messages = list(messages)
        return text


class _Conversation(ChatPromptValue):
    """A prompt of messages whose string keeps them."""

    def to_string(self) -> str:
        return _ConversationText(self.messages)


class _RenderedText(str):  # noqa: SLOT000 - it has a field
    """A rendered prompt as a string, because LangChain passes only text to an LLM."""

    prompt: RenderedPrompt

    def __new__(cls, prompt: RenderedPrompt) -> Self:
        text = super().__new__(cls, "\ufdd1" + prompt.model_dump_json(exclude_defaults=True))
        text.prompt = prompt
        return text


class _Rendered(PromptValue):
    """A prompt that a chat template has rendered."""

    text: SkipValidation[str]

    def to_string(self) -> str:
        return self.text

    def to_messages(self) -> list[BaseMessage]:
        assert isinstance(self.text, _RenderedText)
        return [HumanMessage(self.text.prompt.text)]


def _kept(prompt: PromptValue) -> PromptValue:
    if isinstance(prompt, ChatPromptValue) and not isinstance(prompt, _Conversation):
        return _Conversation(messages=prompt.messages)
    return prompt


def _read_all(prompts: Sequence[str]) -> list[Prompt]:
    return [_read(prompt) for prompt in prompts]


def _read(prompt: str) -> Prompt:
    if isinstance(prompt, _ConversationText):
        return Chat(read_messages(prompt.messages))
    return prompt.prompt if isinstance(prompt, _RenderedText) else prompt


def _llm_result(
    results: list[StarsResult], num_prompts: int, settings: StarsConfig, *, trace: bool
) -> LLMResult:
    generations: list[list[Generation]] = [[] for _ in range(num_prompts)]
    for result in results:
        generations[result.prompt_index].append(generation_of(result, trace=trace))
    return LLMResult(generations=generations, llm_output=llm_output_of(results, settings))
