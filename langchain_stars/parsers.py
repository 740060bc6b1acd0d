"""Parse the answers for a schema: JSON, or the arguments of a tool call."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import BaseMessage, BaseMessageChunk
from langchain_core.output_parsers import (
    BaseCumulativeTransformOutputParser,
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel, SkipValidation, TypeAdapter, ValidationError

from langchain_stars.tools import is_plain_type

Method = Literal["json_schema", "function_calling", "json_mode"]
METHODS = ("json_schema", "function_calling", "json_mode")


def parser_of(schema: Any, method: Method, name: str) -> BaseOutputParser[Any]:
    """Return a parser of answers, to objects of a pydantic model or to dictionaries.

    Args:
        schema: The requested schema.
        method: The method of structured output.
        name: The name of the tool, for "function_calling".
    """
    is_model = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method == "function_calling":
        model = cast("Any", schema) if is_model or is_plain_type(schema) else None
        return CallParser(key_name=name, first_tool_only=True, model=model)
    if is_model:
        return ModelParser(pydantic_object=schema)
    if is_plain_type(schema):
        return TypeParser(kind=schema)
    return JsonOutputParser()


def _validated(model: Any, value: Any) -> Any:
    """Return an object of a pydantic model or another type, from a value that was read from JSON.

    It is validated as JSON, because strict models accept no dates, bytes or tuples from Python's
    strings and lists.
    """
    if is_plain_type(model):
        return TypeAdapter(model).validate_json(json.dumps(value))
    if issubclass(model, BaseModel):
        return model.model_validate_json(json.dumps(value))
    return model.parse_obj(value)


class _ReadsEnds(BaseCumulativeTransformOutputParser[Any]):
    """Parses the whole answer if a stream ends without a value, to report what is wrong with it.

    LangChain's parsers ignore errors in streams, and tool calls of messages that are not chunks.
    """

    def _transform(self, input: Iterator[Any]) -> Iterator[Any]:  # noqa: A002 - LangChain's name
        said, is_parsed = _Said(), False
        chunks = (message for message in input if said.grows_by(message))
        for value in super()._transform(chunks):
            is_parsed = True
            yield value
        if not is_parsed and (value := self.parse_result([said.generation()])) is not None:
            yield value

    async def _atransform(self, input: AsyncIterator[Any]) -> AsyncIterator[Any]:  # noqa: A002
        said, is_parsed = _Said(), False
        chunks = (message async for message in input if said.grows_by(message))
        async for value in super()._atransform(chunks):
            is_parsed = True
            yield value
        if not is_parsed and (value := self.parse_result([said.generation()])) is not None:
            yield value


class _Said:
    """A message, as far as it has been received."""

    def __init__(self) -> None:
        self._message: Any = None

    def grows_by(self, message: BaseMessage) -> bool:
        """Add a part; return whether it is one, and not a whole message."""
        self._message = message if self._message is None else self._message + message
        return isinstance(message, BaseMessageChunk)

    def generation(self) -> ChatGeneration:
        return ChatGeneration(message=self._message)


class ModelParser(_ReadsEnds, PydanticOutputParser[Any]):
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


class CallParser(_ReadsEnds, JsonOutputKeyToolsParser):
    """Parses the arguments of a tool call, to an object of a model or type if there is one.

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
