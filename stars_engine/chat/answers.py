"""Render a conversation and its answer, finished or not, with a reward model's chat template.

Rendering a probe shows how the template begins and ends an assistant message. This differs between
models, and nothing else declares it.
"""

from __future__ import annotations

from collections.abc import Sequence

from stars_engine.chat.template import (
    NO_KWARGS,
    Rendered,
    TemplateKwargs,
    encode_rendered,
    free_mark,
    render,
)
from stars_engine.chat.turns import texts_of, tools_of, turns_of
from stars_engine.errors import PromptError
from stars_engine.messages import Message, Tool
from stars_engine.threads.give_way import give_way
from stars_engine.tokenization.codec import Codec

_PROBE = Message(role="user", content="Hello")


def encode_answer(
    codec: Codec,
    messages: Sequence[Message],
    completion: str,
    *,
    end_of_turn: bool,
    tools: Sequence[Tool] = (),
    template_kwargs: TemplateKwargs = NO_KWARGS,
) -> list[int]:
    """Encode a conversation and the assistant's answer to it.

    Args:
        codec: The tokenizer with the template.
        messages: The conversation, as `acceptable` returns it.
        completion: The answer; control tokens in it are encoded as text.
        end_of_turn: Whether to append what the template writes after an answer.
        tools: The tools that the template describes.
        template_kwargs: Further variables for the template.

    Raises:
        PromptError: The template rejects the messages, or does not show where an answer ends.
    """
    head, tail = frame(codec, messages, tools, template_kwargs)
    if not completion:
        # Templates may omit a message without content.
        text = head.text + tail if end_of_turn else head.text
        return encode_rendered(codec, Rendered(text, head.mark))
    text, mark = render(
        codec,
        [*messages, _answer(completion)],
        tools,
        add_generation_prompt=False,
        template_kwargs=template_kwargs,
    )
    if not text.endswith(tail):
        raise _hidden(completion)
    if not end_of_turn:
        text = text[: len(text) - len(tail)]
    return encode_rendered(codec, Rendered(text, mark))


def frame(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    template_kwargs: TemplateKwargs = NO_KWARGS,
) -> tuple[Rendered, str]:
    """Return the text that the template writes before an answer and after it.

    Raises:
        PromptError: The template rejects the messages, or does not show where an answer is.
    """
    # A word that occurs in no content, between marks that templates do not strip.
    mark = free_mark(texts_of([turns_of(messages), tools_of(tools), dict(template_kwargs)]))
    probe = f"{mark}answer{mark}"
    turns = [*messages, _answer(probe)]
    text = render(
        codec,
        turns,
        tools,
        add_generation_prompt=False,
        mark=mark,
        template_kwargs=template_kwargs,
    ).text
    before, found, after = text.rpartition(probe)
    if not found:
        raise _hidden(probe)
    return Rendered(before, mark), after


def acceptable(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    has_answer: bool = True,
    template_kwargs: TemplateKwargs = NO_KWARGS,
) -> tuple[Message, ...]:
    """Return the conversation in a form that the template accepts, merging messages if necessary.

    If the template rejects a conversation, or omits a system or user message, consecutive messages
    of one role are joined. If that is not enough, or the template has no role for a later system
    message, later system messages, and tool results without a call, are also joined to the
    neighboring user message, and an empty user message precedes an assistant message that comes
    first. If that is still not enough, the same happens to system messages at the beginning.

    Args:
        codec: The tokenizer with the template.
        messages: The conversation.
        tools: The tools that the template describes.
        has_answer: Whether an assistant message, finished or not, follows; otherwise the template
            starts one.
        template_kwargs: Further variables for the template.

    Raises:
        PromptError: The template also rejects the merged conversation.
    """

    def rendered(turns: Sequence[Message]) -> Rendered:
        if has_answer:
            return frame(codec, turns, tools, template_kwargs)[0]
        return render(
            codec, turns, tools, add_generation_prompt=True, template_kwargs=template_kwargs
        )

    def keeps_all(turns: Sequence[Message]) -> bool:
        """Whether the template accepts the messages and writes those of system, user and tools."""
        try:
            text, mark = rendered(turns)
        except PromptError:
            return False
        text = text.replace(mark, "")
        roles = _roles_that_stay(messages)
        return _has_all(text, [turn.content.strip() for turn in turns if turn.role not in roles])

    def has_system_role() -> bool:
        """Whether the template supports system messages, and not only writes any role's name."""
        try:
            first = rendered([_PROBE.replace(role="system"), _PROBE]).text
            later = rendered([turn.replace(content=_PROBE.content) for turn in given]).text
        except PromptError:
            return False
        return "system" in first.lower() or "system" not in later.lower()

    given = tuple(messages)
    num_first = next((i for i, turn in enumerate(given) if turn.role != "system"), len(given))
    first, later = given[:num_first], given[num_first:]
    merged = _joined(_without_system(later))
    ways = [given, _joined(given), _joined((*first, *merged)), _joined(_without_system(given))]
    # Templates may only check the first message.
    if any(turn.role == "system" for turn in later) and not has_system_role():
        del ways[:2]
    for turns in ways:
        if keeps_all(turns):
            return turns
    rendered(given)  # raises if the template rejects the conversation
    return given  # the template omits something on purpose


def _has_all(text: str, parts: Sequence[str]) -> bool:
    """Whether text contains all parts; templates mostly write them in order, which is read once."""
    end = 0
    for part in parts:
        give_way()
        start = text.find(part, end)
        if start >= 0:
            end = start
        elif part not in text:
            return False
    return True


def _roles_that_stay(messages: Sequence[Message]) -> set[str]:
    """Return the roles that are not merged into user messages; with calls, tool results stay."""
    has_calls = any(message.tool_calls for message in messages)
    return {"assistant", "tool"} if has_calls else {"assistant"}


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Return messages with system messages given to the user.

    The same applies to tool results if there are no calls. What the assistant says stays its own:
    if it begins, it answers a user message without content.
    """
    roles = _roles_that_stay(messages)
    merged = [
        message if message.role in roles else Message(role="user", content=message.content)
        for message in messages
    ]
    if merged and merged[0].role == "assistant":
        merged.insert(0, Message(role="user", content=""))
    return merged


def _joined(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Join consecutive messages of one role, except tool calls and tool results."""
    runs: list[list[Message]] = []
    for message in messages:
        give_way()
        last = runs[-1][-1] if runs else None
        if last is None or last.role != message.role or _is_about_tools(last, message):
            runs.append([message])
        else:
            runs[-1].append(message)
    return tuple(run[0] if len(run) == 1 else _merged(run) for run in runs)


def _merged(messages: Sequence[Message]) -> Message:
    reasoning = "\n\n".join(filter(None, (message.reasoning for message in messages)))
    content = "\n\n".join(filter(None, (message.content for message in messages)))
    return Message(role=messages[0].role, content=content, reasoning=reasoning or None)


def _is_about_tools(*messages: Message) -> bool:
    return any(m.role == "tool" or m.tool_calls or m.invalid_tool_calls for m in messages)


def _answer(content: str) -> Message:
    return Message(role="assistant", content=content)


def _hidden(content: str) -> PromptError:
    return PromptError(
        f"the reward model's chat template does not show where the answer {content[:40]!r} ends. "
        "Hint: set template='...{prompt}...{completion}...' on the reward instead"
    )
