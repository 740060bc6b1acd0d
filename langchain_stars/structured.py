"""Structured output: parse the answers for a schema, and report why parsing fails."""

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
from pydantic import BaseModel, SkipValidation, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from langchain_stars.refusals import StarsRefusalError, refusal_of
from langchain_stars.tools import is_plain_type
from stars_engine.schema_formats.wrappings import NamedSchema

Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS = ("json_schema", "function_calling", "json_mode")


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


def parser_of(schema: Any, method: Method, name: str) -> BaseOutputParser[Any]:
    """Return a parser of answers, to objects of a pydantic model or to dictionaries.

    Args:
        schema: The requested schema.
        method: The method of structured output.
        name: The name of the tool, for "function_calling".
    """
    is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method == "function_calling":
        model = cast("Any", schema) if is_model else None
        return CallParser(key_name=name, first_tool_only=True, model=model)
    if is_model:
        return ModelParser(pydantic_object=schema)
    if is_plain_type(schema):
        return TypeParser(kind=schema)
    return JsonOutputParser()


def _validated(model: Any, value: Any) -> Any:
    """Return an object of a pydantic model, from a value that was read from JSON.

    It is validated as JSON, because strict models accept no dates, bytes or tuples from Python's
    strings and lists.
    """
    if issubclass(model, BaseModel):
        return model.model_validate_json(json.dumps(value))
    return model.parse_obj(value)


class ModelParser(PydanticOutputParser[Any]):
    """Parses JSON to objects of a pydantic model."""

    def _parse_obj(self, obj: Any) -> Any:
        try:
            return _validated(self.pydantic_object, obj)
        except ValueError as error:
            raise self._parser_exception(error, obj) from error


class TypeParser(BaseOutputParser[Any]):
    """Parses JSON to a value of a type, such as a member of an enum."""

    kind: SkipValidation[Any]

    def parse(self, text: str) -> Any:
        """Return the value.

        Raises:
            OutputParserException: The text is not JSON of the type.
        """
        try:
            return TypeAdapter(self.kind).validate_json(text)
        except ValidationError as error:
            raise OutputParserException(
                f"the answer is not valid: {error}", llm_output=text
            ) from error


class CallParser(JsonOutputKeyToolsParser):
    """Parses the arguments of a tool call, to an object of a pydantic model if there is one.

    LangChain's own parser finds pydantic models by their titles, which are not names of tools.
    """

    model: Annotated[Any, SkipValidation()] = None

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the arguments of the call; None if there is no call, or no complete one yet.

        Raises:
            ValueError: The model does not accept the arguments.
        """
        arguments = super().parse_result(result, partial=partial)
        if arguments is None or self.model is None:
            return arguments
        try:
            return _validated(self.model, arguments)
        except ValueError:
            if partial:
                return None
            raise


def reading(
    model: Runnable[Any, AIMessage], parser: BaseOutputParser[Any], *, include_raw: bool
) -> Runnable[Any, Any]:
    """Return a model whose answers are parsed. It contains no closures, so it can be pickled."""
    by_call = isinstance(parser, CallParser)
    checks = partial(_checked, by_call=by_call), partial(_achecked, by_call=by_call)
    parsing = RunnableGenerator(*checks) | parser
    if not include_raw:
        return model | parsing
    # RunnablePassthrough.assign creates a class at runtime, which cannot be pickled.
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
