"""Encode the alternatives of a prompt: other system messages, prefaces and openings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stars_engine.algorithm.alternatives import AlternativeIds
from stars_engine.chat.conversations import (
    ResolvedPrompt,
    with_closed_reasoning,
)
from stars_engine.chat.prompts import PromptFormat, is_turn, resolve_prompt
from stars_engine.chat.template import TemplateKwargs
from stars_engine.config import AlignParams, Alternative, SamplingParams
from stars_engine.errors import PromptError
from stars_engine.grammars import GrammarState
from stars_engine.messages import Chat, Message
from stars_engine.tokenization.codec import Codec
from stars_engine.types import Prompt, RenderedPrompt


@dataclass(frozen=True, slots=True)
class AlternativeEncoder:
    """Encodes the alternatives of one prompt.

    Attributes:
        prompt: The prompt.
        plain: The same, as the models read it.
        codec: The language model's tokenizer.
        prompt_format: How a string is read; see `resolve_prompt`.
        template_kwargs: Variables for the chat template.
        sampling: The proposal.
    """

    prompt: Prompt
    plain: ResolvedPrompt
    codec: Codec
    prompt_format: PromptFormat
    template_kwargs: TemplateKwargs
    sampling: SamplingParams

    def encode(self, align: AlignParams) -> tuple[AlternativeIds, ...]:
        """Encode the alternatives that have a share; none if the whole answer is unscored.

        Raises:
            PromptError: An alternative does not apply to this prompt or to the sampling settings.
        """
        replies = self.plain.replies
        must_call = align.judge == "answer" and replies is not None and replies.must_call
        if must_call or align.judges_none_of(self.sampling):
            return ()
        return tuple(
            AlternativeIds(
                index,
                alternative.share,
                self._prompt_ids(index, alternative),
                self._opening_ids(index, alternative),
            )
            for index, alternative in enumerate(align.alternatives)
            if alternative.share > 0
        )

    def _prompt_ids(self, index: int, alternative: Alternative) -> tuple[int, ...] | None:
        if alternative.preface is not None:
            return self._after_preface(index, alternative.preface)
        if alternative.system is None:
            return None
        chat = _with_system_first(self._chat(index), alternative.system)
        return self._read(chat)

    def _read(self, chat: Chat) -> tuple[int, ...]:
        resolved = resolve_prompt(chat, self.codec, template_kwargs=self.template_kwargs)
        if self.sampling.grammar is not None:
            resolved = with_closed_reasoning(resolved)
        return resolved.token_ids

    def _chat(self, index: int) -> Chat:
        prompt = self.prompt
        if isinstance(prompt, Chat):
            return prompt
        is_raw = self.prompt_format == "rendered"
        if isinstance(prompt, str) and not is_raw and is_turn(self.prompt_format, self.codec):
            return Chat([Message(role="user", content=prompt)])
        if isinstance(prompt, RenderedPrompt) and prompt.messages:
            chat = Chat(prompt.messages)
            # Only then is the template's text with another system message the same prompt.
            if self._read(chat) == self.plain.token_ids:
                return chat
            raise PromptError(
                f"alternatives[{index}].system: the model's chat template does not render the "
                "messages of the RenderedPrompt as its text. Hint: give the messages as a Chat"
            )
        kind = type(prompt).__name__
        raise PromptError(
            f"alternatives[{index}].system: the prompt is text to continue ({kind}), which has no "
            "system message. Hint: give a Chat, or use Alternative(preface=...) or "
            "Alternative(opening=...)"
        )

    def _after_preface(self, index: int, preface: str) -> tuple[int, ...]:
        prompt = self.prompt
        is_raw = self.prompt_format != "rendered" and not is_turn(self.prompt_format, self.codec)
        if isinstance(prompt, str) and is_raw:
            return resolve_prompt(preface + prompt, self.codec, prompt_format="raw").token_ids
        raise PromptError(
            f"alternatives[{index}].preface: the prompt is not plain text to continue. Hint: use "
            "Alternative(system=...) for conversations; Alternative(opening=...) works for every "
            "prompt"
        )

    def _opening_ids(self, index: int, alternative: Alternative) -> tuple[int, ...]:
        if alternative.opening is None:
            return ()
        name, replies = f"alternatives[{index}].opening", self.plain.replies
        if replies is not None and replies.reasoning_mode == "open":
            raise PromptError(
                f"{name}: the chat template opens reasoning, so the opening would be part of it. "
                "Hint: switch reasoning off, as in chat_template_kwargs={'enable_thinking': "
                "False}, or use Alternative(system=...)"
            )
        ids = tuple(self.codec.encode_continuation(alternative.opening))
        ending = [token for token in ids if token in self.sampling.stop_token_ids]
        if ending:
            raise PromptError(
                f"{name}: its token {ending[0]} is one of stop_token_ids, which end the answer. "
                "Hint: use another opening, or remove the token from stop_token_ids"
            )
        return ids


def check_openings(alternatives: Sequence[AlternativeIds], start: GrammarState) -> None:
    """Check that a grammar allows the openings.

    Args:
        alternatives: The alternatives of a prompt.
        start: The state of an empty answer.

    Raises:
        PromptError: An opening does not conform to the grammar.
    """
    for alternative in alternatives:
        state = start.fork()
        state.consume(alternative.opening_ids)
        if state.error:
            raise PromptError(
                f"alternatives[{alternative.index}].opening: the grammar of the answer does not "
                "allow it. Hint: change the opening or the grammar; for tools, set "
                "Chat(constrain_tools=False)"
            )


def _with_system_first(chat: Chat, text: str) -> Chat:
    """Return a conversation with a system message, which precedes the text of its own."""
    first, *others = chat.messages
    if first.role == "system":
        joined = first.replace(content=f"{text}\n\n{first.content}")
        return chat.replace(messages=(joined, *others))
    return chat.replace(messages=(Message(role="system", content=text), *chat.messages))
