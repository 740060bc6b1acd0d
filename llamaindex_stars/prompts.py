"""LlamaIndex's prompts and messages as the engine's."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.llms.llm import LLM, default_completion_to_prompt

from stars_engine import Chat, Message, PromptError, RenderedPrompt, StarsConfig
from stars_engine.types import Prompt

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.MODEL: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.FUNCTION: "tool",
}


def completion_prompt(
    llm: LLM, text: str, settings: StarsConfig, *, formatted: bool
) -> tuple[Prompt, StarsConfig]:
    """Return a completion's prompt, and settings under which it is read as meant.

    An unformatted string is what `prompt_format` says, unless the user gave a
    `completion_to_prompt` of his own. A formatted string is read as it is: with control tokens if
    that function wrote it, as plain text if nobody did.
    """
    assert llm.completion_to_prompt is not None
    if llm.completion_to_prompt is not default_completion_to_prompt:
        return RenderedPrompt(text if formatted else llm.completion_to_prompt(text)), settings
    return text, settings.replace(prompt_format="raw") if formatted else settings


def chat_prompt(
    llm: LLM, messages: Sequence[ChatMessage], settings: StarsConfig, *, has_template: bool
) -> tuple[Prompt, StarsConfig]:
    """Return a conversation's prompt, and settings under which it is read as meant.

    It goes through the user's `messages_to_prompt`, else the model's chat template, else
    LlamaIndex's own plain transcript.

    Raises:
        PromptError: A message holds something other than text.
    """
    turns = [Message(role=_role(message.role), content=_text(message)) for message in messages]
    assert llm.messages_to_prompt is not None
    if llm.messages_to_prompt is not generic:
        return RenderedPrompt(llm.messages_to_prompt(messages), messages=turns), settings
    if has_template:
        return Chat(turns), settings
    return generic(messages), settings.replace(prompt_format="raw")


def _role(role: MessageRole) -> str:
    return _ROLES.get(role, role.value)


def _text(message: ChatMessage) -> str:
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise PromptError(
                f"a message holds {type(block).__name__}; this model reads text only. Cure: leave "
                "it out, or put it into words"
            )
    return message.content or ""
