"""Errors of the engine as errors of LangChain, which its middleware and chains handle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions

from langchain_stars.refusals import StarsRefusalError
from stars_engine import AlignmentError, ContextOverflowError

# Absent from older versions of langchain-core.
_Overflow: type[Exception] = getattr(
    exceptions, "ContextOverflowError", exceptions.LangChainException
)


class StarsContextOverflowError(ContextOverflowError, _Overflow):  # type: ignore[misc, valid-type]
    """Prompt and completion exceed the model's context.

    It is `stars_engine.ContextOverflowError` and `langchain_core.exceptions.ContextOverflowError`,
    so that middleware shortens the conversation and calls the model again.
    """


@contextmanager
def as_langchain_errors() -> Iterator[None]:
    """Convert errors of the engine to their subclasses that LangChain knows."""
    try:
        yield
    except (StarsRefusalError, StarsContextOverflowError):
        raise
    except AlignmentError as error:
        raise StarsRefusalError(str(error), error.result) from error
    except ContextOverflowError as error:
        raise StarsContextOverflowError(str(error)) from error
