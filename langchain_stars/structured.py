"""Structured output: models whose answers are parsed, and why an answer cannot be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableMap
from langchain_core.runnables.passthrough import RunnableAssign
from langchain_core.runnables.utils import AddableDict
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic.errors import PydanticInvalidForJsonSchema

from langchain_stars.parsers import CallParser
from langchain_stars.refusals import StarsRefusalError, refusal_of
from langchain_stars.tools import is_plain_type
from stars_engine.schema_formats.wrappings import NamedSchema


def stated(schema: Any, found: NamedSchema | None) -> Any:
    """Return the schema for LangChain's traces."""
    if found is None or found.schema is None:
        return None
    about = {"title": found.name, "description": found.description}
    if isinstance(schema, dict) or is_plain_type(schema) or "$ref" in json.dumps(found.schema):
        parts = dict(found.schema)
        if isinstance(parts.get("type"), list):  # LangChain expects a single type
            parts["anyOf"] = [{"type": kind} for kind in parts.pop("type")]
        return {key: part for key, part in about.items() if part} | parts
    try:
        return convert_to_json_schema(schema)  # cannot convert recursive schemas
    except PydanticInvalidForJsonSchema:  # of a field without a JSON form
        return found.schema


def described(found: NamedSchema) -> dict[str, Any]:
    """Return the schema that the model reads, with the description of the whole."""
    about = {"description": found.description} if found.description else {}
    return {**about, **(found.schema or {})}


def reading(
    model: Runnable[Any, AIMessage], parser: BaseOutputParser[Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """Return a model whose answers are parsed. It contains no closures, so it can be pickled."""
    by_call = isinstance(parser, CallParser)
    checks = partial(_checked, by_call=by_call), partial(_achecked, by_call=by_call)
    parsing = RunnableGenerator(*checks) | parser
    if not include_raw:
        return model | parsing
    outcomes = partial(_outcomes, parsing=parsing), partial(_aoutcomes, parsing=parsing)
    # RunnablePassthrough.assign creates a class at runtime, which cannot be pickled.
    read = RunnableAssign(RunnableMap(read=itemgetter("raw") | RunnableGenerator(*outcomes)))
    return RunnableMap(raw=model) | read | RunnableGenerator(_flat, _aflat)


def _outcomes(
    messages: Iterator[BaseMessage], *, parsing: Runnable[Any, Any]
) -> Iterator[AddableDict]:
    """Yield what was parsed, and then whether it failed; also in streams, nothing is raised."""
    error, is_parsed = None, False
    try:
        for value in parsing.transform(messages):
            is_parsed = True
            yield AddableDict(parsed=value)
    except Exception as raised:  # noqa: BLE001 - of validators, too
        error = raised
    yield _end(error, is_parsed=is_parsed)


async def _aoutcomes(
    messages: AsyncIterator[BaseMessage], *, parsing: Runnable[Any, Any]
) -> AsyncIterator[AddableDict]:
    error, is_parsed = None, False
    try:
        async for value in parsing.atransform(messages):
            is_parsed = True
            yield AddableDict(parsed=value)
    except Exception as raised:  # noqa: BLE001 - of validators, too
        error = raised
    yield _end(error, is_parsed=is_parsed)


def _end(error: Exception | None, *, is_parsed: bool) -> AddableDict:
    nothing = {} if is_parsed and error is None else {"parsed": None}
    return AddableDict(nothing, parsing_error=error)


def _flat(answers: Iterator[dict[str, Any]]) -> Iterator[AddableDict]:
    for answer in answers:
        raw = {name: part for name, part in answer.items() if name != "read"}
        yield AddableDict({**raw, **answer.get("read", {})})


async def _aflat(answers: AsyncIterator[dict[str, Any]]) -> AsyncIterator[AddableDict]:
    async for answer in answers:
        for flat in _flat(iter([answer])):
            yield flat


def _checked(messages: Iterator[BaseMessage], *, by_call: bool) -> Iterator[BaseMessage]:
    said = ""
    for message in messages:
        said += str(message.text)
        _check(message, said, by_call=by_call)
        yield message


async def _achecked(
    messages: AsyncIterator[BaseMessage], *, by_call: bool
) -> AsyncIterator[BaseMessage]:
    said = ""
    async for message in messages:
        said += str(message.text)
        _check(message, said, by_call=by_call)
        yield message


_BOUNDS = {
    "length": "max_tokens",
    "deadline": "deadline_s",
    "budget": "max_drafted_tokens",
    "stop": "a stop string",
}


def _check(message: BaseMessage, said: str, *, by_call: bool) -> None:
    """Refuse an incomplete answer, which parsers would accept as complete.

    Raises:
        StarsRefusalError: No draft was accepted.
        OutputParserException: A limit or a stop string cut off the answer.
    """
    refusal = refusal_of(message)
    if refusal is not None:
        raise StarsRefusalError(
            f"the answer was refused: {refusal}. Hint: catch StarsRefusalError, or lower the "
            "thresholds of the schedule",
            raw_message=message,
        )
    reason = message.response_metadata.get("finish_reason")
    if reason is None or not isinstance(message, AIMessage):
        return  # the answer is not finished
    is_complete = bool(message.tool_calls) if by_call else _is_json(said, reason)
    if is_complete or reason not in _BOUNDS:
        return
    raise OutputParserException(
        f"the answer was cut off by {_BOUNDS[reason]} before its JSON was complete. Hint: raise "
        "the limit, bound the schema (maxLength, maxItems), or remove stop strings that JSON may "
        "contain",
        llm_output=said,
    )


def _is_json(text: str, reason: str) -> bool:
    """Whether an answer is complete JSON; a number that a limit cut off is not."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return not is_number or reason == "stop"
