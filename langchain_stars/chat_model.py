"""`ChatStars`: a LangChain chat model on top of the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import Field, model_validator

from langchain_stars.conversations import Chunks, chat_of, chat_result, tool_of
from langchain_stars.errors import as_langchain_errors
from langchain_stars.fields import OF_CALL, StarsFields, all_at_once
from langchain_stars.outputs import Reporting
from langchain_stars.profiles import profile_of
from langchain_stars.structured import METHODS, described, parser_of, reading, stated
from langchain_stars.tools import other_names, read_schema, read_tools
from stars_engine import Chat, ConfigError, JsonGrammar, StarsConfig
from stars_engine.chat.conversations import read_conversation
from stars_engine.errors import Problem
from stars_engine.integrations import (
    ToolNames,
    asettled,
    chat_sampling,
    check_tools,
    describes,
    digest_of,
    grammar_of_response_format,
    grammar_of_schema,
    identity,
    name_of_model,
    plain,
    read_tool_choice,
    refuse_several_answers,
    settled,
    short_identity,
)

_OF_CHAT = (
    *("tool_choice", "parallel_tool_calls", "constrain_tools", "compact_calls"),
    *("continue_final_message", "answer_schema"),
)
_OF_CALL = frozenset({*_OF_CHAT, *OF_CALL, "tools", "response_format", "describe_schema"})


class ChatStars(StarsFields, BaseChatModel):
    """A local chat model that a reward model steers during generation.

    All fields of the parts of `StarsConfig` are available by name, here and per call; unknown names
    raise an error. Calls also accept `tools`, `tool_choice`, `parallel_tool_calls`,
    `constrain_tools`, `compact_calls`, `continue_final_message` and `answer_schema` of
    `stars_engine.Chat`, `response_format` in the OpenAI format (`describe_schema=False` keeps its
    schema out of the prompt), and `reward_prompt`, which replaces the conversation for the reward
    model.

    Examples:
        >>> chat = ChatStars(max_tokens=48, seed=7)
        >>> chat.invoke([("user", "How was the film?")])
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
            return profile_of(self.engine())
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

    # --- tools and schemas ---

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools that it may call.

        Args:
            tools: Functions, pydantic models, TypedDicts, schemas or `BaseTool`s.
            tool_choice: "auto", "none", "any" or "required", True, the name of a tool, or the
                OpenAI format. A grammar enforces the choice.
            strict: By default, a grammar enforces the schema of arguments. What it cannot express
                is reported by a warning, and checked in complete calls. True refuses such tools.
                False turns the grammar off (`constrain_tools`), unless `tool_choice` forces a call.
            **kwargs: Further keywords for each call, such as `parallel_tool_calls` or any setting.

        Raises:
            ConfigError: `strict` is True, and a grammar cannot express the arguments of a tool.
        """
        formatted = read_tools(tools)
        names = [tool["function"]["name"] for tool in formatted]
        if isinstance(tool_choice, str) and tool_choice not in names:
            tool_choice = other_names(tools).get(tool_choice, tool_choice)
        choice = read_tool_choice(tool_choice, names)
        if strict is False and choice in ("auto", "none"):
            kwargs.setdefault("constrain_tools", False)
        if kwargs.get("constrain_tools", True):
            check_tools(formatted, strict=strict is True, owner="bind_tools")
        return self.bind(tools=formatted, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: Any | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        compact: bool = False,
        describe_schema: bool = True,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return this model with answers that conform to a schema.

        Args:
            schema: A pydantic model (version 1 or 2), a TypedDict, an enum or another type such as
                `list[int]`, a function, or a JSON schema, possibly in the wrapping of OpenAI, MCP,
                Anthropic, Bedrock, Gemini or Cohere. With `json_mode`, None allows any object.
            method: "json_schema" and "json_mode" constrain the answer to JSON of the schema;
                "function_calling" constrains it to a tool call with these arguments.
            include_raw: Return a dictionary with `raw`, `parsed` and `parsing_error` instead.
            strict: If False, objects may have properties beyond the schema; calls may not, but a
                grammar may express only a part of their schema, with a warning.
            compact: Allow no whitespace between the parts of JSON, on which small models may spend
                their token budget.
            describe_schema: Show the schema, with its descriptions, to the model in the system
                message. With "function_calling", the tool always shows it.
            **kwargs: Further keywords for each call.

        Raises:
            ValueError: The method is unknown, or the schema is missing or invalid. With
                "function_calling", also if a grammar cannot express the schema.
        """
        if method not in METHODS:
            raise ValueError(
                f"Unknown method {method!r}; expected one of {', '.join(METHODS)}. Hint: leave "
                "method out for 'json_schema'"
            )
        if schema is None and method != "json_mode":
            raise ValueError(
                f"method={method!r} needs a schema. Hint: give one, or use method='json_mode'"
            )
        kwargs.setdefault("stop", [])  # stop strings of the model could end the JSON early
        found = None if schema is None else read_schema(schema)
        options = {"method": method, "strict": strict}
        kwargs["ls_structured_output_format"] = {"kwargs": options, "schema": stated(schema, found)}
        name = (found and found.name) or "answer"
        if method == "function_calling":
            assert found is not None
            kwargs.setdefault("compact_calls", compact)
            tool = tool_of(found, name)
            if strict is not False:
                owner = "with_structured_output"
                check_tools(read_tools([tool]), strict=True, owner=owner, otherwise="strict=False")
            model = self.bind_tools([tool], tool_choice=name, **kwargs)
        else:
            grammar = JsonGrammar(compact=compact)
            if found is not None and found.schema is not None:
                is_strict = found.strict if strict is None else strict
                grammar = grammar_of_schema(found.schema, strict=is_strict, compact=compact)
                if describe_schema:
                    kwargs.setdefault("answer_schema", described(found))
            model = self.bind(grammar=grammar, **kwargs)
        return reading(model, parser_of(schema, method, name), include_raw=include_raw)

    # --- settings ---

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
        settings, call = self._call(stop, kwargs)
        if settings.sampling == "model":
            sampling = self.engine(settings).facts.default_sampling()
            call["sampling"] = chat_sampling(sampling, settings)
        given = {name: kwargs[name] for name in _OF_CHAT if kwargs.get(name) is not None}
        chat, names = chat_of(messages, kwargs.get("tools") or (), given)
        return settings, chat, call, names
