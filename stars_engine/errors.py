"""The exceptions of the package. Messages say what is wrong, and end in `Hint:` with the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any, NamedTuple

from stars_engine.masking import redact

if TYPE_CHECKING:
    from stars_engine.types import StarsResult


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
            f"{module!r} is not installed. Hint: pip install 'stars-engine[{extra}]'", name=module
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


def describe_error(error: BaseException) -> str:
    """Return the class and message of an error; only the class if reading the message fails.

    Anything in the message that looks like a secret is masked.
    """
    try:
        return f"{type(error).__name__}: {redact(str(error))}"
    except Exception:  # noqa: BLE001 - third-party exceptions
        return type(error).__name__


class ModelLoadError(StarsError):
    """A language model, reward model or tokenizer could not be loaded."""


class PromptError(StarsError, ValueError):
    """A prompt has an invalid type or form."""


class ContextOverflowError(PromptError):
    """Prompt and completion exceed the model's context. Raised before any work starts."""


class RequestError(StarsError):
    """A request failed; other requests in its batch are not affected.

    Attributes:
        result: The part that was accepted before the failure (`finish_reason="error"` or
            `"rejected"`), or None if the request failed before any work.
    """

    def __init__(self, message: str, result: StarsResult | None = None) -> None:
        super().__init__(message)
        self.result = result


class RewardError(RequestError):
    """The reward model raised an error, or returned something that is not a number."""


class ScheduleError(RequestError):
    """The function of a schedule raised an error, or returned something that is not a number."""


class AlignmentError(RequestError):
    """No candidate was accepted in `max_attempts` draws and `on_exhausted` is `"raise"`."""


class CalibrationStoppedError(RequestError):
    """A calibration was stopped before its last stage."""


class GenerationError(RequestError):
    """The language model failed, for example because it ran out of memory."""


class EngineClosedError(RequestError):
    """A closed engine received a request, or the engine was closed while a request was running."""


class EngineForkedError(StarsError):
    """An engine was used in a forked process, where its thread does not exist."""


class QueueFullError(StarsError):
    """The engine's queue is full and `on_full` is `"raise"`."""
