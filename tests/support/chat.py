"""Tools, messages and engines of random models for tests of conversations."""

from __future__ import annotations

from typing import Any

import jsonschema

from stars_engine import (
    AlignParams,
    Chat,
    Message,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    Tool,
    ToolCall,
    TransformersModel,
)
from stars_engine.chat.conversations import read_conversation
from stars_engine.grammars import Grammars
from stars_engine.tokenization.codec import Codec
from stars_engine.types import StarsResult
from tests.support.chat_templates import random_llama, tokenizer_of

WEATHER = Tool(
    name="weather",
    description="Tells the weather.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 6},
            "days": {"$ref": "#/$defs/days"},
        },
        "required": ["city", "days"],
        "$defs": {"days": {"type": "integer", "minimum": 0, "maximum": 9}},
    },
)
CLOCK = Tool(name="clock")
TOOLS = (WEATHER, CLOCK)
SYSTEM = Message(role="system", content="Be kind.")
USER = Message(role="user", content="How warm is it in Oslo?")
CALL = ToolCall(name="weather", arguments={"city": "Oslo", "days": 1}, id="abcdef123")
CALLED = Message(role="assistant", content="", tool_calls=(CALL,))
RESULT = Message(role="tool", content='{"celsius": 7}', tool_call_id="abcdef123", name="weather")
WITH_TOOLS = ["hermes", "thinking", "llama", "mistral"]


def engine_of(name: str | None, **align: Any) -> StarsEngine:
    tokenizer = tokenizer_of(name)
    return StarsEngine(
        StarsConfig(
            model=TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer),
            reward=lambda _, completion: float(len(completion) % 3),
            align=AlignParams(**{"schedule": NoSchedule(), "segment_len": 8, **align}),
            sampling=SamplingParams(max_tokens=400, seed=0, temperature=1.0, top_k=None),
        )
    )


def answer(engine: StarsEngine, chat: Chat, seed: int = 0, **sampling: Any) -> StarsResult:
    [result] = engine.generate(chat, sampling=engine.sampling.replace(seed=seed, **sampling))
    return result


def accepts(chat: Chat, codec: Codec, text: str) -> bool:
    """Whether the grammar of a conversation's answers has this one."""
    grammar = read_conversation(chat, codec).grammar
    assert grammar is not None
    pieces, control = codec.vocabulary(len(codec.tokenizer))
    end = codec.tokenizer.eos_token_id
    grammars = Grammars(pieces, control, [end])
    state = grammars.start(grammar)
    for token in codec.encode_rendered(text):
        if not grammars.allowed([state])[0, token]:
            return False
        state.consume([token])
    return bool(grammars.allowed([state])[0, end])


def check_calls(result: StarsResult, names: set[str]) -> None:
    message = result.message
    assert message is not None
    assert result.finish_reason == "tool_calls"
    assert message.tool_calls
    assert not message.invalid_tool_calls
    assert not message.content
    for call in message.tool_calls:
        assert call.name in names
        [tool] = [tool for tool in TOOLS if tool.name == call.name]
        jsonschema.validate(call.arguments, tool.parameters)
