"""Keep secrets in the keywords of calls out of LlamaIndex's events."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def keeps_secrets(method: Method) -> Method:
    """Seal the secrets in the keywords of a method.

    Apply this outside LlamaIndex's own decorators, which pass the keywords to events.

    Args:
        method: A method of an `EngineFields`.
    """

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **self.without_plain_secrets(kwargs))

    return call  # type: ignore[return-value]
