"""Exceptions that name what is wrong with an input. Messages end in `Hint:` with the fix."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from threading import current_thread, main_thread
from typing import Any, NamedTuple, TypeVar

from stars_engine.redaction import redact

Part = TypeVar("Part")
Result = TypeVar("Result")

HINT = "Hint: "


class _HintedError(Exception):
    """An exception whose message may contain a hint.

    Attributes:
        hint: How to fix the problem; empty if the message has no hint.
    """

    @property
    def hint(self) -> str:
        """How to fix the problem; empty if the message has no hint."""
        _, _, hint = str(self).partition(HINT)
        return hint.strip()


class StarsError(_HintedError):
    """Base of all errors raised by this package."""


class StarsWarning(_HintedError, UserWarning):  # noqa: N818 - a warning
    """Warns about something that works, but probably not as intended."""


class Problem(NamedTuple):
    """One invalid setting: the dotted path of the field, and what is wrong with it."""

    field: str
    message: str

    def under(self, parent: str) -> Problem:
        """Return the problem with its path as seen from the parent config object."""
        return Problem(f"{parent}.{self.field}" if self.field else parent, self.message)

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ConfigError(StarsError, ValueError):
    """A config object has an invalid value."""

    def __init__(self, title: str, problems: list[Problem]) -> None:
        self.title = title
        self.problems = problems
        if len(problems) == 1:
            super().__init__(f"{title}: {problems[0]}")
        else:
            lines = "".join(f"\n  - {problem}" for problem in problems)
            super().__init__(f"{title} has {len(problems)} problems:{lines}")

    @property
    def hint(self) -> str:
        """How to fix the problems; one line for each problem with a hint."""
        hints = (problem.message.partition(HINT)[2].strip() for problem in self.problems)
        return "\n".join(filter(None, hints))

    def __reduce__(self) -> tuple[Any, ...]:
        # By default, exceptions are copied by calling the class with `args`, the message.
        return type(self), (self.title, self.problems), self.__dict__


class MissingExtraError(StarsError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"{module!r} is not installed. Hint: run pip install -e '.[{extra}]' in a clone of the "
            "stars-engine repository",
            name=module,
        )
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.extra), self.__dict__


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Convert a failed import to `MissingExtraError`, which says how to install the package."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "a package", extra) from None


class Interrupted(BaseException):
    """Raised in a thread whose work is abandoned because the process is ending."""


def is_for_program(error: BaseException) -> bool:
    """Whether an error is meant for the whole program, not caused by the code that raised it.

    Third-party code may raise `SystemExit` or `asyncio.CancelledError` to end its own thread or
    task. Python raises `KeyboardInterrupt` on the main thread, in whatever code runs there.
    """
    on_main = current_thread() is main_thread()
    return isinstance(error, Interrupted) or (isinstance(error, KeyboardInterrupt) and on_main)


@contextmanager
def without_exits() -> Iterator[None]:
    """Raise an ordinary error in place of a `GeneratorExit` of third-party code.

    Around a generator, it would look as if that generator were closed.
    """
    try:
        yield
    except GeneratorExit as error:
        raise RuntimeError(describe_error(error)) from error


def run_without_exits(parts: Generator[Part, None, Result]) -> Generator[Part, None, Result]:
    """Yield and return what a generator does; see `without_exits`."""
    with closing(parts):
        while True:
            with without_exits():
                try:
                    part = next(parts)
                except StopIteration as end:
                    result: Result = end.value
                    return result
            yield part


def run_to_end(parts: Generator[object, None, Result]) -> Result:
    """Run a generator to its end, and return what it returns."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: Result = end.value
            return result


def describe_error(error: BaseException) -> str:
    """Return the class and message of an error; only the class if reading the message fails.

    Anything in the message that looks like a secret is masked.
    """
    try:
        return f"{type(error).__name__}: {redact(str(error))}"
    except BaseException as failure:  # third-party exceptions
        if is_for_program(failure):
            raise
        return type(error).__name__


class ModelLoadError(StarsError):
    """A language model, reward model or tokenizer could not be loaded.

    Attributes:
        may_recover: Whether a later attempt may succeed, because a server did not answer.
    """

    may_recover = False


class PromptError(StarsError, ValueError):
    """A prompt has an invalid type or form."""


class ContextOverflowError(PromptError):
    """Prompt and completion exceed the model's context. Raised before any work starts."""
