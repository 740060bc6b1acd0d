"""`StarsLLM`: LlamaIndex's arguments in, the engine's answers out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
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
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.types import TokenAsyncGen
from pydantic import ConfigDict

from llamaindex_stars.prompts import chat_prompt, completion_prompt
from stars_engine import SegmentEvent, StarsConfig, StarsEngine, StarsResult
from stars_engine.adapting import EngineFields, account_of, refuse_several_answers, usage_of
from stars_engine.types import Prompt


class StarsLLM(EngineFields, CustomLLM):
    """A language model of the local machine, steered by a reward model while it writes.

    Every field of `StarsConfig`'s parts may be given by its name, here or per call; unknown names
    raise. All instances in a process share one engine per language model, and concurrent calls
    share its rounds.

    Per call there is also `reward_prompt`: what the reward model reads in place of the prompt, such
    as the question without its documents.

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
        limits = {} if facts.context_len is None else {"context_window": facts.context_len}
        return LLMMetadata(
            num_output=sampling.max_tokens,
            is_chat_model=facts.has_chat_template,
            model_name=settings.model.name_or_path or "in memory",
            **limits,
        )

    def to_payload(self) -> dict[str, Any]:
        """What events tell of it; loads nothing, since events come from event loops too."""
        settings = self.settings()
        if self.engine(settings).is_loaded:
            return super().to_payload()
        name = settings.model.name_or_path or "in memory"
        return {"class_name": self.class_name(), "model_name": name}

    async def apredict(self, *args: Any, **kwargs: Any) -> str:
        """See `LLM.apredict`; the model is loaded without blocking the event loop."""
        await self.aload()
        return await super().apredict(*args, **kwargs)

    async def astream(self, *args: Any, **kwargs: Any) -> TokenAsyncGen:
        """See `LLM.astream`, and `apredict`."""
        await self.aload()
        return await super().astream(*args, **kwargs)

    # --- completions ---

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt; `prompt_format` rules what an unformatted string is."""
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return _completion(engine.generate(**call)[0])

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a prompt without blocking the event loop."""
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return _completion((await engine.agenerate(**call))[0])

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Yield the answer so far with each accepted segment."""
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return _completions(engine, call)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Yield the answer so far with each accepted segment, without blocking the event loop."""
        engine, call = self._completion_call(prompt, formatted, kwargs)
        return _acompletions(engine, call)

    # --- chats ---

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation, through the model's own chat template."""
        self.load()
        engine, call = self._chat_call(messages, kwargs)
        return _as_chat(_completion(engine.generate(**call)[0]))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation without blocking the event loop."""
        await self.aload()
        engine, call = self._chat_call(messages, kwargs)
        return _as_chat(_completion((await engine.agenerate(**call))[0]))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Yield the answer so far with each accepted segment."""
        self.load()
        engine, call = self._chat_call(messages, kwargs)
        return _chats(engine, call)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Yield the answer so far with each accepted segment, without blocking the event loop."""
        await self.aload()
        engine, call = self._chat_call(messages, kwargs)
        return _achats(engine, call)

    # --- settings ---

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
        settings = self.settings(**kwargs)
        has_template = self.engine(settings).has_chat_template
        prompt, settings = chat_prompt(self, messages, settings, has_template=has_template)
        return self._call(prompt, settings, reward_prompt)

    def _call(
        self, prompt: Prompt, settings: StarsConfig, reward_prompt: Any
    ) -> tuple[StarsEngine, dict[str, Any]]:
        """Return the engine, and its arguments."""
        refuse_several_answers(settings)
        call = {"prompts": prompt, "align": settings.align, "reward_prompt": reward_prompt}
        if settings.sampling != "model":
            call["sampling"] = settings.sampling
        return self.engine(settings), call


# --- responses ---


def _completions(
    engine: StarsEngine, call: dict[str, Any]
) -> Generator[CompletionResponse, None, None]:
    text = ""
    with closing(engine.stream(**call)) as events:
        for event in events:
            text += event.text
            yield _partial(text, event)


async def _acompletions(
    engine: StarsEngine, call: dict[str, Any]
) -> AsyncGenerator[CompletionResponse, None]:
    text = ""
    async with engine.astream(**call) as events:
        async for event in events:
            text += event.text
            yield _partial(text, event)


def _chats(engine: StarsEngine, call: dict[str, Any]) -> ChatResponseGen:
    with closing(_completions(engine, call)) as completions:
        for completion in completions:
            yield _as_chat(completion)


async def _achats(engine: StarsEngine, call: dict[str, Any]) -> ChatResponseAsyncGen:
    async with aclosing(_acompletions(engine, call)) as completions:
        async for completion in completions:
            yield _as_chat(completion)


def _completion(result: StarsResult) -> CompletionResponse:
    return CompletionResponse(
        text=result.text, raw=account_of(result), additional_kwargs=usage_of(result)
    )


def _partial(text: str, event: SegmentEvent) -> CompletionResponse:
    result = event.result
    return CompletionResponse(
        text=text,
        delta=event.text,
        raw=None if result is None else account_of(result),
        additional_kwargs={} if result is None else usage_of(result),
    )


def _as_chat(completion: CompletionResponse) -> ChatResponse:
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=completion.text),
        delta=completion.delta,
        raw=completion.raw,
        additional_kwargs=completion.additional_kwargs,
    )
