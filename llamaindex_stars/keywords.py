"""Read the keywords of constructors and calls, before LlamaIndex's events see them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from stars_engine import StarsConfig
from stars_engine.integrations import EngineFields, own_names

Method = TypeVar("Method", bound=Callable[..., Any])


def reads_keywords(method: Method) -> Method:
    """Give a method our names of settings, and models whose secrets are sealed.

    Apply this outside LlamaIndex's own decorators, which pass the keywords to events.

    Args:
        method: A method of an `EngineFields`.
    """

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = own_names(kwargs, type(self).__name__)
        return method(self, *args, **self.without_plain_secrets(given))

    return call  # type: ignore[return-value]


class FurtherFields(EngineFields):
    """Fields of an adapter that may also be given in a dictionary, as LlamaIndex's users expect."""

    additional_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="further settings by name, which replace those of fields"
    )

    if not TYPE_CHECKING:  # type checkers derive the keywords from the fields

        def __init__(self, **values: Any) -> None:
            if further := values.get("additional_kwargs"):
                values["additional_kwargs"] = own_names(further, type(self).__name__)
            super().__init__(**values)

    def settings(self, **overrides: Any) -> StarsConfig:
        """See `EngineFields.settings`."""
        return super().settings(**{**self.additional_kwargs, **overrides})
