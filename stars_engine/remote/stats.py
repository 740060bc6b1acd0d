"""Counts of the requests to servers."""

from dataclasses import dataclass


@dataclass(slots=True)
class ServerStats:
    """Counts of the requests to the servers of one model.

    Attributes:
        num_requests: Requests that were answered.
        num_retries: Attempts after the first.
        num_failovers: Attempts at another server than the one before.
        num_prompt_tokens: Prompt tokens of answered requests.
        num_cached_tokens: Those of them that the server had in its prefix cache, as it says.
    """

    num_requests: int = 0
    num_retries: int = 0
    num_failovers: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
