"""Bind tools and schemas to a chat model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from langchain_stars.conversations import tool_of
from langchain_stars.parsers import METHODS, parser_of
from langchain_stars.structured import described, reading, stated
from langchain_stars.tools import other_names, read_schema, read_tools
from stars_engine import JsonGrammar
from stars_engine.integrations import (
    check_tools,
    grammar_of_schema,
    own_names,
    read_tool_choice,
)


class BindsTools(BaseChatModel):
    """A chat model whose tool calls and structured answers a grammar enforces."""

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return this model with tools that it may call.

        Args:
            tools: Functions, pydantic models, TypedDicts, schemas or `BaseTool`s.
            tool_choice: "auto", "none", "any" or "required", True, the name of a tool, or the
                OpenAI format. A grammar enforces the choice.
            strict: By default, a grammar enforces the schema of arguments. What it cannot express
                is reported by a warning, and checked in complete calls. True refuses such tools.
                False turns the grammar off (`constrain_tools`), unless `tool_choice` forces a call.
            **kwargs: Further keywords for each call, such as `parallel_tool_calls` or any setting.

        Raises:
            ConfigError: `strict` is True, and two tools have the same name, or a grammar cannot
                express the arguments of a tool.
        """
        formatted = read_tools(tools)
        names = [tool["function"]["name"] for tool in formatted]
        if isinstance(tool_choice, str) and tool_choice not in names:
            tool_choice = other_names(tools).get(tool_choice, tool_choice)
        choice = read_tool_choice(tool_choice, names)
        if strict is False and choice in ("auto", "none"):
            kwargs.setdefault("constrain_tools", False)
        if kwargs.get("constrain_tools", True):
            check_tools(formatted, strict=strict is True, owner="bind_tools")
        return self.bind(tools=formatted, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: Any | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        compact: bool = False,
        describe_schema: bool = True,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return this model with answers that conform to a schema.

        Args:
            schema: A pydantic model (version 1 or 2), a TypedDict, an enum or another type such as
                `list[int]`, a function, or a JSON schema, possibly in the wrapping of OpenAI, MCP,
                Anthropic, Bedrock, Gemini or Cohere. With `json_mode`, None allows any object.
            method: "json_schema" and "json_mode" constrain the answer to JSON of the schema;
                "function_calling" constrains it to a tool call with these arguments.
            include_raw: Return a dictionary with `raw`, `parsed` and `parsing_error` instead.
            strict: If False, objects may have properties beyond the schema; calls may not, but a
                grammar may express only a part of their schema, with a warning.
            compact: Allow no whitespace between the parts of JSON, on which small models may spend
                their token budget.
            describe_schema: Show the schema, with its descriptions, to the model in the system
                message. With "function_calling", the schema is always shown, as part of the tool.
            **kwargs: Further keywords for each call.

        Raises:
            ValueError: The method is unknown, or the schema is missing or invalid. With
                "function_calling", also if a grammar cannot express the schema.
        """
        if method not in METHODS:
            raise ValueError(
                f"Unknown method {method!r}; expected one of {', '.join(METHODS)}. Hint: leave "
                "method out for 'json_schema'"
            )
        if schema is None and method != "json_mode":
            raise ValueError(
                f"method={method!r} needs a schema. Hint: give one, or use method='json_mode'"
            )
        kwargs = own_names(kwargs, type(self).__name__)
        kwargs.setdefault("stop", [])  # stop strings of the model could end the JSON early
        found = None if schema is None else read_schema(schema)
        options = {"method": method, "strict": strict}
        kwargs["ls_structured_output_format"] = {"kwargs": options, "schema": stated(schema, found)}
        name = (found and found.name) or "answer"
        if method == "function_calling":
            assert found is not None
            kwargs.setdefault("compact_calls", compact)
            tool = tool_of(found, name)
            if strict is not False:
                owner = "with_structured_output"
                check_tools(read_tools([tool]), strict=True, owner=owner, otherwise="strict=False")
            model = self.bind_tools([tool], tool_choice=name, **kwargs)
        else:
            grammar = JsonGrammar(compact=compact)
            if found is not None and found.schema is not None:
                is_strict = found.strict if strict is None else strict
                grammar = grammar_of_schema(found.schema, strict=is_strict, compact=compact)
                if describe_schema:
                    kwargs.setdefault("answer_schema", described(found))
            model = self.bind(grammar=grammar, **kwargs)
        return reading(model, parser_of(schema, method, name), include_raw=include_raw)
