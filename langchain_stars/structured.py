"""Structured output: a schema in, a grammar for the model and a parser for its answer out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from operator import itemgetter
from typing import Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputKeyToolsParser,
    JsonOutputParser,
    PydanticOutputParser,
    PydanticToolsParser,
)
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableMap,
    RunnablePassthrough,
)
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from langchain_stars.refusals import StarsRefusalError, refusal_of
from stars_engine import JsonGrammar

Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS = ("json_schema", "function_calling", "json_mode")


def json_grammar(schema: Any, *, strict: bool | None) -> JsonGrammar:
    """Return the grammar of a schema of any kind; None is any object.

    Args:
        schema: A pydantic model (of version 1 or 2), a TypedDict, a JSON schema, or None.
        strict: False lets objects have properties that the schema does not name.
    """
    if schema is None:
        return JsonGrammar()
    return JsonGrammar(json_schema=schema_of(schema), extra_properties=strict is False)


def schema_of(schema: Any) -> dict[str, Any]:
    """Return the JSON schema: LangChain's own conversion cuts recursion, and what is no object."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    found: Any = schema
    if isinstance(schema, dict):
        found = schema.get("function", schema)
        found = found.get("parameters", found.get("schema", found))
    if not isinstance(found, dict):
        found = convert_to_json_schema(schema)
    return {name: value for name, value in found.items() if name not in ("name", "strict")}


def grammar_of_response_format(wanted: Any) -> JsonGrammar | None:
    """Return the grammar of a `response_format` of the OpenAI format; None for text.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(wanted, dict):
        return json_grammar(wanted, strict=True)
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return JsonGrammar()
        case "json_schema" if isinstance(wanted.get("json_schema"), dict):
            inner = wanted["json_schema"]
            return JsonGrammar(
                json_schema=inner.get("schema", {"type": "object"}),
                extra_properties=inner.get("strict") is False,
            )
    raise ValueError(
        f"response_format={wanted!r} is none. Allowed: {{'type': 'text'}}, "
        "{'type': 'json_object'}, {'type': 'json_schema', 'json_schema': {'schema': ...}}, or a "
        "pydantic model"
    )


def parser_of(schema: Any, method: Method) -> BaseOutputParser[Any]:
    """Return what reads the answers: objects of a pydantic model, or plain dictionaries."""
    is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method != "function_calling":
        if is_model:
            return PydanticOutputParser(pydantic_object=schema)
        return JsonOutputParser()
    if is_model:
        return PydanticToolsParser(tools=[cast("Any", schema)], first_tool_only=True)
    name = convert_to_openai_tool(schema)["function"]["name"]
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def reading(
    model: Runnable[Any, AIMessage], parser: BaseOutputParser[Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """Return a model whose answers are parsed."""
    by_call = isinstance(parser, PydanticToolsParser | JsonOutputKeyToolsParser)

    def checked(messages: Iterator[BaseMessage]) -> Iterator[BaseMessage]:
        said = ""
        for message in messages:
            said += str(message.text)
            _check(message, said, by_call=by_call)
            yield message

    async def achecked(messages: AsyncIterator[BaseMessage]) -> AsyncIterator[BaseMessage]:
        said = ""
        async for message in messages:
            said += str(message.text)
            _check(message, said, by_call=by_call)
            yield message

    parsing = RunnableGenerator(checked, achecked) | parser
    if not include_raw:
        return model | parsing
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parsing, parsing_error=lambda _: None
    )
    unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")


_BOUNDS = {
    "length": "max_tokens",
    "deadline": "deadline_s",
    "budget": "max_drafted_tokens",
    "stop": "a stop string",
}


def _check(message: BaseMessage, said: str, *, by_call: bool) -> None:
    """Raise where an answer ended before it was whole: parsers would take what there is for all.

    Raises:
        StarsRefusalError: No draft was accepted.
        OutputParserException: A bound, or a stop string, cut the answer off.
    """
    refusal = refusal_of(message)
    if refusal is not None:
        raise StarsRefusalError(f"the answer was refused: {refusal}", raw_message=message)
    reason = message.response_metadata.get("finish_reason")
    if reason is None or not isinstance(message, AIMessage):
        return  # more is to come
    if (bool(message.tool_calls) if by_call else _is_json(said)) or reason not in _BOUNDS:
        return
    raise OutputParserException(
        f"the answer was cut off by {_BOUNDS[reason]} before its JSON was complete. Cure: more "
        "room, or a schema with bounds (maxLength, maxItems); no stop string that JSON may hold",
        llm_output=said,
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
