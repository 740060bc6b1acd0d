"""`ChatStars`: a LangChain chat model on top of the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from pydantic import Field, model_validator

from langchain_stars.binding import BindsTools
from langchain_stars.conversations import Chunks, chat_of, chat_result
from langchain_stars.errors import as_langchain_errors
from langchain_stars.fields import OF_CALL, StarsFields, all_at_once
from langchain_stars.outputs import Reporting, combined
from langchain_stars.profiles import profile_of
from langchain_stars.tools import read_schema
from stars_engine import Chat, ConfigError, SamplingParams, StarsConfig
from stars_engine.chat.conversations import read_conversation
from stars_engine.errors import Problem
from stars_engine.integrations import (
    ToolNames,
    asettled,
    chat_sampling,
    describes,
    digest_of,
    grammar_of_response_format,
    identity,
    name_of_model,
    plain,
    refuse_several_answers,
    settled,
    short_identity,
)

_OF_CHAT = (
    *("tool_choice", "parallel_tool_calls", "constrain_tools", "compact_calls"),
    *("continue_final_message", "answer_schema"),
)
_OF_CALL = frozenset({*_OF_CHAT, *OF_CALL, "tools", "response_format", "describe_schema"})


class ChatStars(StarsFields, BindsTools, BaseChatModel):
    """A local chat model that a reward model steers during generation.

    Setup:
        Install `stars-engine[local,langchain]`; tools and schemas also need the extra `grammar`.
        No key and no server are needed. The models are loaded at the first call.

    Key init args:
        model: The language model: a name, a folder, or a `TransformersModel`.
        reward: The reward model: a name, a config such as `ClassifierReward`, or a function of
            prompt and completion.
        temperature: Softness of sampling; 0 is greedy.
        max_tokens: The longest answer; by default what is left of the context, up to 1,024.
        stop: Strings that end an answer.
        timeout: Another name for `deadline_s`.
        config: A whole `StarsConfig`, which the other fields override.

        All fields of the parts of `StarsConfig` are available by name, here and per call; unknown
        names raise an error.

    Instantiate:
        ```python
        from langchain_stars import ChatStars

        chat = ChatStars(max_tokens=24, seed=7)  # the small pair inside the package
        ```

    Invoke:
        ```python
        message = chat.invoke([("user", "How was the film?")])
        print(message.text)
        ```

        Calls also accept `reward_prompt`, which replaces the conversation for the reward model, and
        `continue_final_message` of `stars_engine.Chat`.

    Stream:
        Accepted segments only; tool calls stream while they are written.

        ```python
        for chunk in chat.stream("How was the film?"):
            print(chunk.text, end="")
        ```

    Async:
        ```python
        import asyncio

        print(asyncio.run(chat.ainvoke("How was the film?")).text)
        ```

    Tool calling:
        A grammar allows only valid calls, and enforces `tool_choice`.

        ```python
        from typing import Literal


        def rate(stars: Literal[1, 2, 3]) -> str:
            'Rates the film.'


        rating = chat.bind_tools([rate], tool_choice="rate", max_tokens=128).invoke("Rate it.")
        print(rating.tool_calls)
        ```

        Calls accept `tools`, `tool_choice`, `parallel_tool_calls`, `constrain_tools` and
        `compact_calls` of `stars_engine.Chat`.

    Structured output:
        ```python
        from pydantic import BaseModel


        class Verdict(BaseModel):
            good: bool


        print(chat.with_structured_output(Verdict, max_tokens=64).invoke("A fine film."))
        ```

        Calls also accept `response_format` in the OpenAI format, and `answer_schema` of
        `stars_engine.Chat`. `describe_schema=False` keeps the schema out of the prompt.

    Image input:
        None: images, audio and video raise `PromptError`.

    Token usage:
        ```python
        print(message.usage_metadata)
        ```

    Response metadata:
        The finish reason, the usage, and under "stars" the reward, the seed and what was rejected.
        With `trace=True`, every segment and attempt.

        ```python
        print(message.response_metadata["stars"]["reward"])
        ```
    """

    _kind: ClassVar[Literal["llm", "chat"]] = "chat"

    streaming: bool = Field(
        default=False, description="stream in `invoke` too, for callbacks that receive tokens"
    )

    @property
    def model_name(self) -> str:
        """The name of the model, which LangChain's agents read."""
        return name_of_model(self.settings())

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Return the number of tokens of a conversation, rendered with the chat template.

        `custom_get_token_ids` counts the contents of messages, as in LangChain.
        """
        if self.custom_get_token_ids is not None:
            return super().get_num_tokens_from_messages(list(messages), tools)
        chat, _ = chat_of(messages, tools or (), {"constrain_tools": False})
        kwargs = self.settings().chat_template_kwargs
        return len(read_conversation(chat, self.engine().model.codec, kwargs).token_ids)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer all inputs in shared engine steps, unless `max_concurrency` limits them."""
        configs = all_at_once(config, len(inputs))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "profile":
            return profile_of(self.engine(), lambda: self._sampling(self.settings()))
        return super().__getattr__(name)  # type: ignore[misc]

    @model_validator(mode="after")
    def _leave_profile_to_use(self) -> Self:
        """Make the profile an attribute that is read from the model's files when it is used."""
        if self.__dict__.get("profile") is None:
            self.__dict__.pop("profile", None)
            self.model_fields_set.discard("profile")
        return self

    # --- whole answers ---

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        settings, chat, call, names = self._ask(messages, stop, kwargs)
        with as_langchain_errors():
            results = self.engine(settings).generate(chat, **call)
        return chat_result(results, self._reporting(settings, kwargs), names)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        await self._read_facts()
        settings, chat, call, names = self._ask(messages, stop, kwargs)
        with as_langchain_errors():
            results = await self.engine(settings).agenerate(chat, **call)
        return chat_result(results, self._reporting(settings, kwargs), names)

    # --- streaming ---

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        settings, chat, call, names = self._ask(messages, stop, kwargs)
        refuse_several_answers(settings)
        with as_langchain_errors(), closing(self.engine(settings).stream(chat, **call)) as events:
            chunks = self._chunks(names, settings, kwargs)
            for event in settled(events):
                chunk = chunks.of(event)
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        await self._read_facts()
        settings, chat, call, names = self._ask(messages, stop, kwargs)
        refuse_several_answers(settings)
        with as_langchain_errors():
            async with self.engine(settings).astream(chat, **call) as events:
                chunks = self._chunks(names, settings, kwargs)
                async for event in asettled(events):
                    chunk = chunks.of(event)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk

    # --- settings ---

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        return {"model_name": self.model_name, **combined(llm_outputs)}

    def _get_invocation_params(
        self, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return what traces store of a call: its settings in short, and its other keywords."""
        settings = self._settings(stop, self._of_engine(kwargs))
        others = {name: plain(kwargs[name]) for name in kwargs if name in _OF_CALL}
        return {**short_identity(settings), **others, "_type": self._llm_type}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return the key of caches; LangChain's own contains addresses of objects in memory."""
        settings = self._settings(stop, self._of_engine(kwargs))
        others = {name: plain(kwargs[name]) for name in kwargs if name in _OF_CALL}
        others.setdefault("trace", self.trace)
        return f"{self._llm_type} {digest_of({'settings': identity(settings), **others})}"

    def settings(self, **overrides: Any) -> StarsConfig:
        """Return the config with all fields, and the overrides of a call, applied.

        If `max_tokens` is not set, it is what is left of the context, up to 1,024.
        """
        settings = super().settings(**overrides)
        if settings.sampling == "model":
            return settings
        return settings.replace(sampling=chat_sampling(settings.sampling, settings))

    def _sampling(self, settings: StarsConfig) -> SamplingParams:
        return chat_sampling(super()._sampling(settings), settings)

    def _of_engine(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in kwargs.items() if name not in _OF_CALL}

    def _reporting(self, settings: StarsConfig, kwargs: Mapping[str, Any]) -> Reporting:
        engine = self.engine(settings)
        return Reporting(
            settings,
            trace=kwargs.get("trace", self.trace),
            num_tokens=lambda text: len(engine.model.codec.encode(text)),
        )

    def _chunks(self, names: ToolNames, settings: StarsConfig, kwargs: Mapping[str, Any]) -> Chunks:
        whole = self.output_version == "v1"
        return Chunks(names, self._reporting(settings, kwargs), whole_calls=whole)

    async def _read_facts(self) -> None:
        """Load the model if its files determine the sampling, without blocking the event loop."""
        if self.config.sampling == "model":
            await self.aload()

    def _ask(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[StarsConfig, Chat, dict[str, Any], ToolNames]:
        """Return the settings, conversation, engine arguments and tool names of one call."""
        if (wanted := kwargs.get("response_format")) is not None:
            if not isinstance(wanted, Mapping):  # a pydantic model (version 1 or 2) or a TypedDict
                wanted = read_schema(wanted).schema
            grammar = grammar_of_response_format(wanted)
            if describes(grammar) and kwargs.get("describe_schema", True):
                kwargs = {"answer_schema": grammar.json_schema, **kwargs}
            if "grammar" in kwargs and grammar is not None:
                message = "response_format and grammar both constrain the answer. Hint: give one"
                raise ConfigError("ChatStars", [Problem("response_format", message)])
            kwargs = kwargs if grammar is None else {**kwargs, "grammar": grammar}
            if grammar is not None and kwargs.get("tools") and kwargs.get("tool_choice") != "none":
                message = "an answer follows either its schema or tools, because a grammar holds "
                message += "one of them. Hint: give agents with tools ToolStrategy(schema)"
                raise ConfigError("ChatStars", [Problem("response_format", message)])
        settings, call = self._call(stop, kwargs)
        if settings.sampling == "model":
            call["sampling"] = self._sampling(settings)
        given = {name: kwargs[name] for name in _OF_CHAT if kwargs.get(name) is not None}
        chat, names = chat_of(messages, kwargs.get("tools") or (), given)
        return settings, chat, call, names
