"""Every exception that the package raises on purpose: what is wrong, then `Hint:` with the fix."""

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
        hint: How to fix it; empty if the message does not say.
    """

    @property
    def hint(self) -> str:
        """How to fix it; empty if the message does not say."""
        _, _, hint = str(self).partition(HINT)
        return hint.strip()


class StarsError(_HintedError):
    """Base of all errors raised by this package."""


class StarsWarning(_HintedError, UserWarning):  # noqa: N818 - a warning
    """Something works, but probably not as intended."""


class Problem(NamedTuple):
    """One invalid setting: the dotted path of the field, and what is wrong with it."""

    field: str
    message: str

    def under(self, parent: str) -> Problem:
        """Return the same problem as seen from the config object that holds this one."""
        return Problem(f"{parent}.{self.field}" if self.field else parent, self.message)

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class ConfigError(StarsError, ValueError):
    """A config object was given a value it does not allow."""

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
        """How to fix the problems, one line for each that says so."""
        hints = (problem.message.partition(HINT)[2].strip() for problem in self.problems)
        return "\n".join(filter(None, hints))

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are copied by calling the class with `args`, which is the message alone.
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
    """Turn a failed import into `MissingExtraError`, which says how to install the package."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "a package", extra) from None


class Interrupted(BaseException):
    """What a thread was at was given up because the process is ending."""


def is_for_program(error: BaseException) -> bool:
    """Whether an error is meant for the program, and not the fault of the code it came up in.

    Other people's code may raise `SystemExit` or `asyncio.CancelledError`, which end one thread or
    task of theirs; Python raises `KeyboardInterrupt` on the main thread, whatever runs there.
    """
    on_main = current_thread() is main_thread()
    return isinstance(error, Interrupted) or (isinstance(error, KeyboardInterrupt) and on_main)


def describe_error(error: BaseException) -> str:
    """Return an error's class and message; the class alone if its message cannot be had.

    What looks like a secret in the message is masked.
    """
    try:
        return f"{type(error).__name__}: {redact(str(error))}"
    except Exception:  # noqa: BLE001 - other people's exceptions
        return type(error).__name__


class ModelLoadError(StarsError):
    """A language model, reward model or tokenizer could not be loaded."""


class PromptError(StarsError, ValueError):
    """A prompt is of a form that cannot be used."""


class ContextOverflowError(PromptError):
    """Prompt and requested completion do not fit the model's context. Raised before any work."""


class RequestError(StarsError):
    """One request failed; the others of its batch are not affected.

    Attributes:
        result: What had been accepted when the request failed (`finish_reason="error"` or
            `"rejected"`), or None if it failed before any work.
    """

    def __init__(self, message: str, result: StarsResult | None = None) -> None:
        super().__init__(message)
        self.result = result


class RewardError(RequestError):
    """The reward model raised, or returned something that is not a number."""


class ScheduleError(RequestError):
    """A schedule's own function raised, or returned something that is not a number."""


class AlignmentError(RequestError):
    """No candidate was accepted in `max_attempts` draws and `on_exhausted` is `"raise"`."""


class CalibrationStoppedError(RequestError):
    """A calibration was told to stop before its last stage."""


class GenerationError(RequestError):
    """The language model failed, for example for want of memory."""


class EngineClosedError(RequestError):
    """A closed engine was asked to work, or was closed at work."""


class EngineForkedError(StarsError):
    """An engine was used in a process forked from its own, where its thread does not exist."""


class QueueFullError(StarsError):
    """The engine's queue is full and `on_full` is `"raise"`."""
