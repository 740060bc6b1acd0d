"""Tool calls for LlamaIndex, and structured prediction through them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.function_program import get_function_tool
from llama_index.core.program.utils import create_flexible_model
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel
from pydantic_core import from_json

from llamaindex_stars.responses import UNFINISHED_CALLS
from llamaindex_stars.tools import callable_tools, read_tool_list, validated
from stars_engine.integrations import check_tools


class CallingLLM(FunctionCallingLLM):
    """A model that calls tools under the caller's names, with their complete schemas."""

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
        """Return the arguments for a chat with tools; does not modify the history.

        Among the further keywords, `strict=True` refuses tools whose arguments a grammar cannot
        express. By default, a warning names them, and their calls are checked when complete.

        Raises:
            ConfigError: `strict` is True, and two tools have the same name, or a grammar cannot
                express the arguments of a tool.
        """
        messages = list(chat_history or [])
        if user_msg is not None:
            if isinstance(user_msg, str):
                user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
            messages.append(user_msg)
        choice = kwargs.pop("tool_choice", None)  # LlamaIndex's programs pass None
        strict, formatted = kwargs.pop("strict", None), read_tool_list(tools)
        if kwargs.get("constrain_tools", True):
            owner = "chat_with_tools"
            check_tools(formatted, strict=strict is True, owner=owner, otherwise="strict=False")
        return {
            "messages": messages,
            "tools": formatted,
            "tool_choice": choice or ("required" if tool_required and tools else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls of an answer.

        Raises:
            ValueError: The answer has no valid call, and `error_on_no_tool_call` is True or there
                is an invalid one, which agents would take for an empty answer.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        invalid = response.message.additional_kwargs.get("invalid_tool_calls")
        if not calls and (error_on_no_tool_call or invalid):
            reason = f"the model produced an invalid tool call: {invalid}" if invalid else "text"
            raise ValueError(
                f"the answer has no tool call ({reason}). Hint: use tool_required=True, or a "
                "larger max_tokens"
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=call.tool_kwargs,
            )
            for call in calls
        ]

    def predict_and_call(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> AgentChatResponse:
        """See `FunctionCallingLLM.predict_and_call`, which structured prediction uses.

        If there is one tool and it must be called, a grammar must express all of its arguments,
        unless `strict` is False.
        """
        kwargs = self._strict(tools, kwargs)
        return super().predict_and_call(callable_tools(tools), *args, **kwargs)

    async def apredict_and_call(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> AgentChatResponse:
        """Do the same without blocking the event loop."""
        kwargs = self._strict(tools, kwargs)
        return await super().apredict_and_call(callable_tools(tools), *args, **kwargs)

    def _strict(self, tools: Sequence[BaseTool], kwargs: dict[str, Any]) -> dict[str, Any]:
        is_forced = bool(kwargs.get("tool_required")) and len(tools) == 1
        return {"strict": True, **kwargs} if is_forced and self._predicts_by_calls else kwargs

    def _structured_stream_call(  # type: ignore[override]  # narrower
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[BaseModel, None, None]:
        """Yield the object while it is written, and then complete.

        LlamaIndex's own method does not force the call.
        """
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
        return {"strict": True, **(llm_kwargs or {}), **asked}

    def _objects(self, response: ChatResponse, output_cls: type[BaseModel]) -> list[BaseModel]:
        """Return the object in an answer: while it is written, with all fields optional."""
        if response.raw is None:
            return _partial_objects(response, output_cls)
        calls = self.get_tool_calls_from_response(response)
        return [validated(output_cls, call.tool_kwargs) for call in calls]


def _partial_objects(response: ChatResponse, output_cls: type[BaseModel]) -> list[BaseModel]:
    """Return the object of an unfinished call, in LlamaIndex's form; [] if nothing is written."""
    calls = response.message.additional_kwargs.get(UNFINISHED_CALLS) or []
    if not calls or not calls[0]["arguments"]:
        return []
    try:
        written = from_json(calls[0]["arguments"], allow_partial="trailing-strings")
        return [create_flexible_model(output_cls).model_validate(written)]
    except ValueError:  # what is written does not fit yet
        return []
