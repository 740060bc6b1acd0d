"""Map the names that callers give tools to names that a model can write."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from stars_engine.errors import PromptError
from stars_engine.messages import CHOICES
from stars_engine.types import SegmentEvent, StarsResult

_MAX_LEN = 64
_UNSAFE = re.compile(r"[^a-zA-Z0-9_.-]+")


class ToolNames:
    """The names of a conversation's tools, for the caller and for the model.

    Models write letters, digits, '_', '-' and '.'. Callers use any name: `Box[bool]`, "look up",
    names in any script or of any length. Names that a model can write do not change.

    Args:
        given: Names of the tools that may be called. Names from earlier calls of the conversation
            are mapped on first use.
    """

    def __init__(self, given: Iterable[str] = ()) -> None:
        self._written: dict[str, str] = {}
        names = list(given)
        for name in sorted(names, key=lambda name: _safe(name) != name):  # stable
            self.written(name)

    def written(self, name: str) -> str:
        """Return the name that the model writes; it is unique."""
        if name not in self._written:
            safe, taken = _safe(name), set(self._written.values())
            if safe != name:
                taken |= {*CHOICES, "any"}
            number = 1
            while safe in taken:
                number += 1
                safe = f"{_safe(name)[: _MAX_LEN - 1 - len(str(number))]}_{number}"
            self._written[name] = safe
        return self._written[name]

    def given(self, name: str) -> str:
        """Return the caller's name for a name that the model writes."""
        return next((given for given, safe in self._written.items() if safe == name), name)

    def tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        """Return a tool in the OpenAI format with the name that the model writes."""
        function = tool["function"]
        name = self.written(function["name"])
        about = {"name": name}
        if name != function["name"] and not function.get("description"):
            about["description"] = function["name"]  # it may say more than the written name
        return {**tool, "function": {**function, **about}}

    def result(self, result: StarsResult) -> StarsResult:
        """Return an answer with the caller's names in its calls."""
        message = result.message
        if message is None or not (message.tool_calls or message.invalid_tool_calls):
            return result
        valid = [call.replace(name=self.given(call.name)) for call in message.tool_calls]
        invalid = [
            call if call.name is None else call.replace(name=self.given(call.name))
            for call in message.invalid_tool_calls
        ]
        renamed = message.replace(tool_calls=tuple(valid), invalid_tool_calls=tuple(invalid))
        return result.model_copy(update={"message": renamed})

    def event(self, event: SegmentEvent) -> SegmentEvent:
        """Return a stream event with the caller's names in its tool calls."""
        deltas = tuple(
            delta if delta.name is None else delta.replace(name=self.given(delta.name))
            for delta in event.tool_calls
        )
        result = None if event.result is None else self.result(event.result)
        return event.model_copy(update={"tool_calls": deltas, "result": result})

    def choice(self, choice: str) -> str:
        """Return a `tool_choice` of `read_tool_choice` with the name that the model writes."""
        return self._written.get(choice, choice)


def read_tool_choice(choice: Any, names: Iterable[str]) -> str:
    """Convert a tool choice to the engine's form.

    Args:
        choice: "auto", "none", "any" or "required", True (a call, of the only tool if there is
            one), False or None (the model decides), the name of a tool, or the OpenAI or Anthropic
            format.
        names: The caller's names of the tools.

    Raises:
        PromptError: `choice` is not a valid choice.
    """
    names = list(names)
    if choice is None or choice is False:
        return "auto"
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        named = inner.get("name") if isinstance(inner, Mapping) else None
        choice = named or (choice.get("type") if len(choice) == 1 else choice)
    if choice is True:
        return names[0] if len(names) == 1 else "required"
    allowed = (*CHOICES, "any", *names)
    if not isinstance(choice, str) or choice not in allowed:
        raise PromptError(
            f"unknown tool_choice={choice!r}; expected one of "
            f"{', '.join(map(repr, allowed))}, True, False and None. Hint: use 'auto', or add the "
            "tool"
        )
    return choice


def _safe(name: str) -> str:
    """Return the nearest name that a model can write; it may not be unique."""
    if len(name) <= _MAX_LEN and name and not _UNSAFE.search(name):
        return name
    plain = unicodedata.normalize("NFKD", name)
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    return _UNSAFE.sub("_", plain).strip("_")[:_MAX_LEN] or "tool"
