"""Keywords of calls, as LlamaIndex shows them to those who follow its events."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def keeps_secrets(method: Method) -> Method:
    """Have a method get its keywords with the secrets in them put away.

    It goes around LlamaIndex's own decorators, which pass the keywords on.

    Args:
        method: Of an `EngineFields`.
    """

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **self.without_plain_secrets(kwargs))

    return call  # type: ignore[return-value]
