"""`StarsLLM`: a LlamaIndex LLM on top of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.types import TokenAsyncGen
from pydantic import ConfigDict, Field

from llamaindex_stars.calling import CallingLLM
from llamaindex_stars.keywords import FurtherFields, reads_keywords
from llamaindex_stars.pickles import left_behind_if_live, refuse_left_behind
from llamaindex_stars.prompts import chat_prompt, completion_prompt, is_own_template
from llamaindex_stars.responses import (
    achats_of,
    acompletions_of,
    chat_of,
    chats_of,
    completion_of,
    completions_of,
)
from llamaindex_stars.tools import read_tool_list
from stars_engine import (
    Chat,
    ConfigError,
    JsonGrammar,
    ModelLoadError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.errors import Problem
from stars_engine.integrations import (
    EngineFields,
    ToolNames,
    chat_sampling,
    describes,
    grammar_of_response_format,
    lenient,
    name_of_model,
    read_tool_choice,
    refuse_several_answers,
)
from stars_engine.types import Prompt

_OF_CHAT = (
    *("tools", "tool_choice", "parallel_tool_calls", "constrain_tools", "compact_calls"),
    "answer_schema",
)


class StarsLLM(FurtherFields, CallingLLM, CustomLLM):
    """A local language model that a reward model steers during generation.

    All fields of the parts of `StarsConfig` are available by name, here and per call; unknown names
    raise an error. All instances in a process share one engine per language model, and concurrent
    calls share its steps.

    Calls also accept `reward_prompt`, which replaces the prompt for the reward model, for example
    with the question without its documents; `response_format`, in the OpenAI format or as a schema;
    and, for conversations, `tools`, `tool_choice`, `parallel_tool_calls`, `constrain_tools`,
    `compact_calls` and `answer_schema` of `stars_engine.Chat`. In conversations, the schema of
    `response_format` is shown to the model, unless `describe_schema=False`.

    If prompt and `max_tokens` exceed the context, the answer is shortened to the remaining context
    (`on_overflow="clamp"`, unless it is set), because LlamaIndex fills prompts up to
    `context_window`. `system_prompt` and `query_wrapper_prompt` apply to unformatted completions.

    Examples:
        ```python
        from llama_index.core.llms import ChatMessage

        from llamaindex_stars import StarsLLM

        llm = StarsLLM(max_tokens=24, seed=7, context_window=256, additional_kwargs={"top_k": 20})
        print(llm.complete("The acting in this movie").text)
        print(llm.chat([ChatMessage("How was the film?")]).message.content)
        for part in llm.stream_complete("The plot"):
            print(part.delta, end="")
        ```
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    context_window: int | None = Field(
        default=None,
        gt=0,
        description="tokens that LlamaIndex may fill; by default, and at most, the model's context",
    )

    @classmethod
    def class_name(cls) -> str:
        """Return the name for serialization."""
        return "StarsLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The capabilities of the model, read from its files without loading its weights."""
        settings = self.settings()
        facts, sampling = self.engine(settings).facts, self._sampling(settings)
        num_output, limits = sampling.max_tokens, {}
        known = [size for size in (facts.context_len, self.context_window) if size is not None]
        if known:
            limits = {"context_window": min(known)}
            if sampling.on_overflow == "clamp":
                num_output = min(num_output, min(known) // 4)  # space that prompts reserve
        return LLMMetadata(
            num_output=num_output,
            is_chat_model=facts.has_chat_template,
            # With a grammar, any model writes valid calls in the format of its template.
            is_function_calling_model=not is_own_template(self)
            and find_spec("llguidance") is not None,
            model_name=name_of_model(settings),
            **limits,
        )

    def to_payload(self) -> dict[str, Any]:
        """Return the payload for events; does not load the model, to keep event loops free."""
        settings = self.settings()
        if self.engine(settings).is_loaded:
            return super().to_payload()
        return {"class_name": self.class_name(), "model_name": name_of_model(settings)}

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """The model's tokenizer, for `Settings.tokenizer`; the first use loads the model."""

        def encode(text: str) -> list[int]:
            return self.engine().model.codec.encode(text)

        return encode

    async def apredict(self, *args: Any, **kwargs: Any) -> str:
        """See `LLM.apredict`; the model is loaded without blocking the event loop."""
        await self.aload()
        return await super().apredict(*args, **kwargs)

    async def astream(self, *args: Any, **kwargs: Any) -> TokenAsyncGen:
        """See `LLM.astream`, and `apredict`."""
        await self.aload()
        return await super().astream(*args, **kwargs)

    # --- completions ---

    @reads_keywords
    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt.

        `prompt_format` determines how an unformatted string is read. A formatted string is read
        as the output of the chat template, so its control tokens are parsed.
        """
        trace = kwargs.pop("trace", self.trace)
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return completion_of(engine.generate(**call)[0], trace=trace)

    @reads_keywords
    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a prompt without blocking the event loop."""
        await self._engine_of(kwargs).aload()
        trace = kwargs.pop("trace", self.trace)
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return completion_of((await engine.agenerate(**call))[0], trace=trace)

    @reads_keywords
    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Yield the answer so far with each accepted segment."""
        trace = kwargs.pop("trace", self.trace)
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return completions_of(engine, call, trace=trace)

    @reads_keywords
    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Yield the answer so far with each accepted segment, without blocking the event loop."""
        await self._engine_of(kwargs).aload()
        trace = kwargs.pop("trace", self.trace)
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return acompletions_of(engine, call, trace=trace)

    # --- chats ---

    @reads_keywords
    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation, rendered with the model's chat template."""
        self._engine_of(kwargs).load()
        trace = kwargs.pop("trace", self.trace)
        engine, call, names = self._chat_call(messages, kwargs)
        return chat_of(names.result(engine.generate(**call)[0]), trace=trace)

    @reads_keywords
    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation without blocking the event loop."""
        await self._engine_of(kwargs).aload()
        trace = kwargs.pop("trace", self.trace)
        engine, call, names = self._chat_call(messages, kwargs)
        return chat_of(names.result((await engine.agenerate(**call))[0]), trace=trace)

    @reads_keywords
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Yield the answer so far with each accepted segment."""
        self._engine_of(kwargs).load()
        trace = kwargs.pop("trace", self.trace)
        engine, call, names = self._chat_call(messages, kwargs)
        return chats_of(engine, call, names, trace=trace)

    @reads_keywords
    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Yield the answer so far with each accepted segment, without blocking the event loop."""
        await self._engine_of(kwargs).aload()
        trace = kwargs.pop("trace", self.trace)
        engine, call, names = self._chat_call(messages, kwargs)
        return achats_of(engine, call, names, trace=trace)

    # --- copies ---

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle.

        LlamaIndex drops components that fail to pickle, and their copies in other processes fail
        without a reason. So a live object is left behind, and the copy names it when it is used.
        """
        kept = self.model_copy()  # it has no engines
        for name in EngineFields.model_fields.keys() & self.model_fields_set:
            kept.__dict__[name] = left_behind_if_live(name, getattr(self, name))
        return super(StarsLLM, kept).__getstate__()

    # --- settings ---

    def settings(self, **overrides: Any) -> StarsConfig:
        """Return the config with all fields, and the overrides of a call, applied.

        Raises:
            ConfigError: A name is unknown, a value is invalid, or this is a copy in another process
                that lacks a live object.
        """
        for name in self.model_fields_set:
            refuse_left_behind(self.__dict__.get(name))
        return super().settings(**overrides)

    def _engine_of(self, kwargs: dict[str, Any]) -> StarsEngine:
        others = ("reward_prompt", "trace", "response_format", "describe_schema", *_OF_CHAT)
        given = {name: value for name, value in kwargs.items() if name not in others}
        return self.engine(self.settings(**given))

    def _completion_call(
        self, text: str, formatted: bool, kwargs: dict[str, Any]
    ) -> tuple[StarsEngine, dict[str, Any]]:
        reward_prompt = kwargs.pop("reward_prompt", None)
        kwargs.pop("describe_schema", None)  # a completion has no system message
        settings = self._settings_of(kwargs)
        reads_template = formatted or self.system_prompt is not None
        has_template = reads_template and self.engine(settings).has_chat_template
        prompt, settings = completion_prompt(
            self, text, settings, formatted=formatted, has_template=has_template
        )
        return self._call(prompt, settings, reward_prompt)

    def _chat_call(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[StarsEngine, dict[str, Any], ToolNames]:
        reward_prompt = kwargs.pop("reward_prompt", None)
        tools = {name: kwargs.pop(name) for name in _OF_CHAT if name in kwargs}
        given = read_tool_list(tools.get("tools") or ())
        names = ToolNames(tool["function"]["name"] for tool in given)
        if given:
            tools["tools"] = [lenient(names.tool(tool)) for tool in given]
        if tools.get("tool_choice") is not None:
            known = [tool["function"]["name"] for tool in given]
            tools["tool_choice"] = names.choice(read_tool_choice(tools["tool_choice"], known))
        is_described = kwargs.pop("describe_schema", True)
        settings = self._settings_of(kwargs)
        grammar = settings.sampling.grammar if settings.sampling != "model" else None
        if "response_format" in kwargs and is_described and isinstance(grammar, JsonGrammar):
            tools |= {"answer_schema": grammar.json_schema} if describes(grammar) else {}
        has_template = self.engine(settings).has_chat_template
        prompt, settings = chat_prompt(
            self, messages, settings, has_template=has_template, tools=tools, names=names
        )
        return *self._call(prompt, settings, reward_prompt), names

    def _settings_of(self, kwargs: dict[str, Any]) -> StarsConfig:
        """Return the settings of a call, with its `response_format` as a grammar.

        Raises:
            ConfigError: `response_format` is invalid, or the call also has a grammar.
        """
        kwargs = dict(kwargs)
        wanted = kwargs.pop("response_format", None)
        grammar = None if wanted is None else grammar_of_response_format(wanted)
        if grammar is not None and kwargs.get("grammar") is not None:
            message = "response_format and grammar both constrain the answer. Hint: give one"
            raise ConfigError("StarsLLM", [Problem("response_format", message)])
        return self.settings(**(kwargs if grammar is None else {**kwargs, "grammar": grammar}))

    def _call(
        self, prompt: Prompt, settings: StarsConfig, reward_prompt: Any
    ) -> tuple[StarsEngine, dict[str, Any]]:
        """Return the engine and its arguments."""
        refuse_several_answers(settings, hint="n=1")
        engine, sampling = self.engine(settings), self._sampling(settings)
        if isinstance(prompt, Chat):  # with tools, also without a template
            sampling = chat_sampling(sampling, settings)
        call = {"prompts": prompt, "align": settings.align, "reward_prompt": reward_prompt}
        return engine, {**call, "sampling": sampling}

    def _sampling(self, settings: StarsConfig) -> SamplingParams:
        """Return those of calls, which clamp answers to the context."""
        sampling = super()._sampling(settings)
        with suppress(ModelLoadError):  # a call raises it
            if self.engine(settings).facts.has_chat_template:
                sampling = chat_sampling(sampling, settings)
        if "on_overflow" in sampling.model_fields_set:
            return sampling
        return sampling.replace(on_overflow="clamp")
