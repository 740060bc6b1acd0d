"""The errors of single requests in the engine core."""

from __future__ import annotations

from stars_engine.algorithm.rollout import Rollout
from stars_engine.errors import GenerationError, RequestError, describe_error, is_for_program


def out_of_memory_error(rollout: Rollout, cause: Exception) -> GenerationError:
    """Return the error of a request that is alone and for which memory does not suffice."""
    error = GenerationError(
        f"out of memory with a single running request ({describe_error(cause)}; prompt "
        f"{len(rollout.prompt_ids)} tokens, completion {len(rollout.token_ids)}). The request "
        "ends here; others are not affected. Hint: shorten the prompt, or use shorter segments or "
        "a smaller dtype"
    )
    error.__cause__ = cause
    return error


def as_request_error(cause: BaseException, what: str) -> RequestError:
    """Return the error of the one request that cannot go on; others do.

    Args:
        cause: The error.
        what: What failed, for the message.

    Raises:
        BaseException: The cause, if it is meant for the whole program.
    """
    if isinstance(cause, RequestError):
        return cause
    if is_for_program(cause):
        raise cause
    error = GenerationError(
        f"{what} failed: {describe_error(cause)}. The request ends here; others are not affected. "
        "Hint: fix the code that raised this"
    )
    error.__cause__ = cause
    return error
