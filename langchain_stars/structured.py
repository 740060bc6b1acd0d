"""Structured output: what reads the answers of a schema, or tells why it cannot."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from operator import itemgetter
from typing import Annotated, Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import Generation
from langchain_core.runnables import (
    Runnable,
    RunnableGenerator,
    RunnableMap,
)
from langchain_core.runnables.passthrough import RunnableAssign
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, SkipValidation

from langchain_stars.refusals import StarsRefusalError, refusal_of
from stars_engine.schema_formats.wrappings import NamedSchema

Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS = ("json_schema", "function_calling", "json_mode")


def stated(schema: Any, found: NamedSchema | None) -> Any:
    """Return the schema as LangChain's traces have it."""
    if found is None or found.schema is None:
        return None
    about = {"title": found.name, "description": found.description}
    if isinstance(schema, dict) or "$ref" in json.dumps(found.schema):
        return {key: part for key, part in about.items() if part} | found.schema
    return convert_to_json_schema(schema)  # which would cut what refers to itself


def parser_of(schema: Any, method: Method, name: str) -> BaseOutputParser[Any]:
    """Return what reads the answers: objects of a pydantic model, or plain dictionaries.

    Args:
        schema: What was asked for.
        method: How it is answered.
        name: Of the tool, for calls.
    """
    is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method == "function_calling":
        model = cast("Any", schema) if is_model else None
        return CallParser(key_name=name, first_tool_only=True, model=model)
    if is_model:
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


class CallParser(JsonOutputKeyToolsParser):
    """Reads the arguments of one tool's call, as an object of a pydantic model if there is one.

    LangChain's parser of pydantic models finds them by titles, which are no names of tools.
    """

    model: Annotated[Any, SkipValidation()] = None

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the arguments of the call; None where there is none, or none yet.

        Raises:
            ValueError: The arguments are not valid by the model.
        """
        arguments = super().parse_result(result, partial=partial)
        if arguments is None or self.model is None:
            return arguments
        try:
            if issubclass(self.model, BaseModel):
                return self.model.model_validate(arguments)
            return self.model.parse_obj(arguments)
        except ValueError:
            if partial:
                return None
            raise


def reading(
    model: Runnable[Any, AIMessage], parser: BaseOutputParser[Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """Return a model whose answers are parsed. It can be pickled, as nothing in it is a closure."""
    by_call = isinstance(parser, CallParser)
    checks = partial(_checked, by_call=by_call), partial(_achecked, by_call=by_call)
    parsing = RunnableGenerator(*checks) | parser
    if not include_raw:
        return model | parsing
    # Not RunnablePassthrough.assign: it makes a class by itself, which no other process knows.
    parsed = RunnableAssign(RunnableMap(parsed=itemgetter("raw") | parsing, parsing_error=_nothing))
    unparsed = RunnableAssign(RunnableMap(parsed=_nothing))
    return RunnableMap(raw=model) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")


def _nothing(_: Any) -> None:
    return None


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
        f"the answer was cut off by {_BOUNDS[reason]} before its JSON was complete. Hint: more "
        "room, or a schema with bounds (maxLength, maxItems); no stop string that JSON may hold",
        llm_output=said,
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
