"""`StarsLLM`: LlamaIndex's arguments in, the engine's answers out."""

from __future__ import annotations

import pickle
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
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
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import PydanticProgramMode, TokenAsyncGen
from pydantic import BaseModel, ConfigDict

from llamaindex_stars.keywords import keeps_secrets
from llamaindex_stars.prompts import chat_prompt, completion_prompt, is_own_template
from llamaindex_stars.responses import (
    achats_of,
    acompletions_of,
    chat_of,
    chats_of,
    completion_of,
    completions_of,
)
from stars_engine import ConfigError, SamplingParams, StarsConfig, StarsEngine
from stars_engine.errors import Problem
from stars_engine.integrations import EngineFields, name_of_model, refuse_several_answers
from stars_engine.types import Prompt

_OF_CHAT = ("tools", "tool_choice", "parallel_tool_calls", "constrain_tools")


class StarsLLM(EngineFields, FunctionCallingLLM, CustomLLM):
    """A language model of the local machine, steered by a reward model while it writes.

    Every field of `StarsConfig`'s parts may be given by its name, here or per call; unknown names
    raise. All instances in a process share one engine per language model, and concurrent calls
    share its rounds.

    Per call there are also `reward_prompt`: what the reward model reads in place of the prompt,
    such as the question without its documents; and for conversations `tools`, `tool_choice`,
    `parallel_tool_calls` and `constrain_tools` of `stars_engine.Chat`.

    Where prompt and `max_tokens` exceed the context, the answer may be as long as there is room
    (`on_overflow="clamp"`, unless it is set): LlamaIndex fills prompts up to `context_window`.

    Example:
        >>> llm = StarsLLM(max_tokens=48, seed=7)
        >>> llm.complete("The acting in this movie").text
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised form."""
        return "StarsLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What the model can read and write, by its files; event loops ask, so it is not loaded."""
        settings = self.settings()
        facts = self.engine(settings).facts
        sampling = facts.default_sampling() if settings.sampling == "model" else settings.sampling
        num_output, limits = sampling.max_tokens, {}
        if facts.context_len is not None:
            limits = {"context_window": facts.context_len}
            if _clamped(sampling).on_overflow == "clamp":
                num_output = min(num_output, facts.context_len // 4)  # what prompts leave free
        return LLMMetadata(
            num_output=num_output,
            is_chat_model=facts.has_chat_template,
            # A grammar writes valid calls for any model, in the format of its template.
            is_function_calling_model=not is_own_template(self)
            and find_spec("llguidance") is not None,
            model_name=name_of_model(settings),
            **limits,
        )

    def to_payload(self) -> dict[str, Any]:
        """What events tell of it; loads nothing, since events come from event loops too."""
        settings = self.settings()
        if self.engine(settings).is_loaded:
            return super().to_payload()
        return {"class_name": self.class_name(), "model_name": name_of_model(settings)}

    @property
    def tokenizer_fn(self) -> Callable[[str], list[int]]:
        """The model's own tokenizer, for `Settings.tokenizer`; the first use loads it."""

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

    @keeps_secrets
    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt; `prompt_format` rules what an unformatted string is."""
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return completion_of(engine.generate(**call)[0])

    @keeps_secrets
    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a prompt without blocking the event loop."""
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return completion_of((await engine.agenerate(**call))[0])

    @keeps_secrets
    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Yield the answer so far with each accepted segment."""
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return completions_of(engine, call)

    @keeps_secrets
    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Yield the answer so far with each accepted segment, without blocking the event loop."""
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return acompletions_of(engine, call)

    # --- chats ---

    @keeps_secrets
    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation, through the model's own chat template."""
        self._engine_of(kwargs).load()
        engine, call = self._chat_call(messages, kwargs)
        return chat_of(engine.generate(**call)[0])

    @keeps_secrets
    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation without blocking the event loop."""
        await self._engine_of(kwargs).aload()
        engine, call = self._chat_call(messages, kwargs)
        return chat_of((await engine.agenerate(**call))[0])

    @keeps_secrets
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Yield the answer so far with each accepted segment."""
        self._engine_of(kwargs).load()
        engine, call = self._chat_call(messages, kwargs)
        return chats_of(engine, call)

    @keeps_secrets
    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Yield the answer so far with each accepted segment, without blocking the event loop."""
        await self._engine_of(kwargs).aload()
        engine, call = self._chat_call(messages, kwargs)
        return achats_of(engine, call)

    # --- tools ---

    def _prepare_chat_with_tools(  # noqa: PLR0917 - LlamaIndex's arguments
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of a chat with tools; the history stays as it is."""
        messages = list(chat_history or [])
        if user_msg is not None:
            if isinstance(user_msg, str):
                user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
            messages.append(user_msg)
        choice = kwargs.pop("tool_choice", None)  # programs give None
        return {
            "messages": messages,
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "tool_choice": choice or ("required" if tool_required and tools else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls of an answer.

        Raises:
            ValueError: It has none, and one is asked for.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            invalid = response.message.additional_kwargs.get("invalid_tool_calls")
            reason = f"what was written as one is none: {invalid}" if invalid else "it is text"
            raise ValueError(
                f"the answer calls no tool ({reason}). Cure: tool_required=True, or more max_tokens"
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=call.tool_kwargs,
            )
            for call in calls
        ]

    def _structured_stream_call(  # type: ignore[override]  # narrower
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[BaseModel, None, None]:
        """Yield the object once it is whole: LlamaIndex's own leaves the call to the model."""
        if not self._predicts_by_calls:
            yield from super()._structured_stream_call(  # type: ignore[misc]
                output_cls, prompt, llm_kwargs, **prompt_args
            )
            return
        asked = self._structured_call(output_cls, prompt, llm_kwargs, prompt_args)
        for response in self.stream_chat_with_tools(**asked):
            yield from self._objects(response, output_cls)

    async def _structured_astream_call(  # type: ignore[override]  # narrower
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[BaseModel, None]:
        """Do the same without blocking the event loop."""
        if not self._predicts_by_calls:
            stream: AsyncGenerator[Any, None] = await super()._structured_astream_call(
                output_cls, prompt, llm_kwargs, **prompt_args
            )
            return stream
        asked = self._structured_call(output_cls, prompt, llm_kwargs, prompt_args)
        responses = await self.astream_chat_with_tools(**asked)

        async def objects() -> AsyncGenerator[BaseModel, None]:
            async for response in responses:
                for made in self._objects(response, output_cls):
                    yield made

        return objects()

    @property
    def _predicts_by_calls(self) -> bool:
        modes = (PydanticProgramMode.DEFAULT, PydanticProgramMode.FUNCTION)
        return self.pydantic_program_mode in modes and self.metadata.is_function_calling_model

    def _structured_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> dict[str, Any]:
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        tool = get_function_tool(output_cls)
        asked = {"tools": [tool], "chat_history": messages, "tool_required": True}
        return {**(llm_kwargs or {}), **asked}

    def _objects(self, response: ChatResponse, output_cls: type[BaseModel]) -> list[BaseModel]:
        """Return the object that an answer holds; none as long as it is unfinished."""
        is_whole = response.raw is not None
        calls = self.get_tool_calls_from_response(response, error_on_no_tool_call=is_whole)
        return [output_cls(**call.tool_kwargs) for call in calls]

    # --- copies ---

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled; LlamaIndex would leave out what cannot be, and go on without.

        Raises:
            ConfigError: A field is a live object that cannot be pickled.
        """
        for name in EngineFields.model_fields.keys() & self.model_fields_set:
            try:
                pickle.dumps(getattr(self, name))
            except Exception as error:
                message = (
                    f"it cannot be pickled ({error}). Cure: models by name, and a callable as "
                )
                message += "FunctionReward(function='module:name')"
                raise ConfigError("StarsLLM", [Problem(name, message)]) from error
        return super(StarsLLM, self.model_copy()).__getstate__()  # which drops engines

    # --- settings ---

    def _engine_of(self, kwargs: dict[str, Any]) -> StarsEngine:
        """Return the engine of a call."""
        others = ("reward_prompt", *_OF_CHAT)
        given = {name: value for name, value in kwargs.items() if name not in others}
        return self.engine(self.settings(**given))

    def _completion_call(
        self, text: str, formatted: bool, kwargs: dict[str, Any]
    ) -> tuple[StarsEngine, dict[str, Any]]:
        reward_prompt = kwargs.pop("reward_prompt", None)
        settings = self.settings(**kwargs)
        prompt, settings = completion_prompt(self, text, settings, formatted=formatted)
        return self._call(prompt, settings, reward_prompt)

    def _chat_call(
        self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]
    ) -> tuple[StarsEngine, dict[str, Any]]:
        reward_prompt = kwargs.pop("reward_prompt", None)
        tools = {name: kwargs.pop(name) for name in _OF_CHAT if name in kwargs}
        settings = self.settings(**kwargs)
        has_template = self.engine(settings).has_chat_template
        prompt, settings = chat_prompt(
            self, messages, settings, has_template=has_template, tools=tools
        )
        return self._call(prompt, settings, reward_prompt)

    def _call(
        self, prompt: Prompt, settings: StarsConfig, reward_prompt: Any
    ) -> tuple[StarsEngine, dict[str, Any]]:
        """Return the engine, and its arguments."""
        refuse_several_answers(settings, cure="n=1")
        engine, sampling = self.engine(settings), settings.sampling
        if sampling == "model":
            sampling = engine.facts.default_sampling()
        call = {"prompts": prompt, "align": settings.align, "reward_prompt": reward_prompt}
        return engine, {**call, "sampling": _clamped(sampling)}


def _clamped(sampling: SamplingParams) -> SamplingParams:
    """Return settings that take the room there is, unless they say otherwise."""
    if "on_overflow" in sampling.model_fields_set:
        return sampling
    return sampling.replace(on_overflow="clamp")
