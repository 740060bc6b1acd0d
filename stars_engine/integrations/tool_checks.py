"""Check tools when they are bound: their names, and what a grammar cannot express of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stars_engine.chat.argument_checks import unexpressed_of
from stars_engine.errors import ConfigError, MissingExtraError, Problem, StarsWarning
from stars_engine.integrations.metadata import digest_of
from stars_engine.integrations.tool_names import ToolNames
from stars_engine.messages import Tool

_reported: set[str] = set()  # agents bind their tools before each call


def check_tools(
    tools: Sequence[Mapping[str, Any]],
    *,
    strict: bool,
    owner: str,
    otherwise: str = "strict=None",
) -> None:
    """Warn once about tools whose arguments a grammar cannot express, or refuse them.

    Args:
        tools: The tools in the OpenAI format, under the caller's names.
        strict: Whether to refuse them, and tools that have the same name.
        owner: The method that binds the tools, for messages.
        otherwise: The argument that does not refuse them, for the hint.

    Raises:
        ConfigError: `strict` is true, and two tools have the same name, or a grammar cannot express
            the arguments of a tool.
    """
    if strict:  # otherwise the call reports it: LangChain's own tests bind tools of one name
        _refuse_equal_names(tools, owner)
    names = ToolNames(tool["function"]["name"] for tool in tools)
    try:
        reasons = unexpressed_of(Tool(**names.tool(tool)["function"]) for tool in tools)
    except MissingExtraError:  # the call itself reports it
        return
    named = {names.given(name): reason for name, reason in reasons.items()}
    if not named:
        return
    if strict:
        raise ConfigError(
            owner,
            [
                Problem(
                    f"tools.{name}",
                    f"{_why(reason)}. Hint: change the schema there, or use {otherwise} to check "
                    "it after the call is complete",
                )
                for name, reason in named.items()
            ],
        )
    if (key := digest_of({"owner": owner, **named})) in _reported:
        return
    _reported.add(key)
    listed = ". ".join(f"{name!r}: {reason}" for name, reason in named.items())
    warnings.warn(
        f"{owner}: a grammar cannot express the whole schema of these tools. {listed}. The grammar "
        "expresses the rest, and complete calls are checked; those that do not conform become "
        "invalid_tool_calls. Hint: remove these parts of the schemas, or refuse such tools with "
        "strict=True",
        StarsWarning,
        stacklevel=3,
    )


def _refuse_equal_names(tools: Sequence[Mapping[str, Any]], owner: str) -> None:
    """Refuse tools of the same name, because a call could mean either of them."""
    counts = Counter(tool["function"]["name"] for tool in tools)
    problems = [
        Problem(f"tools.{name}", f"{count} tools have this name. Hint: rename all but one")
        for name, count in counts.items()
        if count > 1
    ]
    if problems:
        raise ConfigError(owner, problems)


def _why(reason: str) -> str:
    return reason if reason.startswith("no value") else f"a grammar cannot express {reason}"


def lenient(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tool in the OpenAI format whose grammar may express a part of its schema."""
    return {**tool, "function": {**tool["function"], "strict": False}}
