"""The servers of one model: which one gets a request, and which ones are down."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

_DOWN_S = 1.0  # after a first failure; doubled by each further one
_MAX_DOWN_S = 30.0


@dataclass(eq=False, slots=True)
class Endpoint:
    """One server.

    Attributes:
        url: Its base URL.
        num_in_flight: Requests that it has not answered yet.
        num_sessions: Sessions that stay at it.
    """

    url: str
    num_in_flight: int = 0
    num_sessions: int = 0
    _num_failures: int = 0
    _down_until_s: float = 0.0

    @property
    def is_down(self) -> bool:
        """Whether it failed a moment ago."""
        return time.monotonic() < self._down_until_s

    def note_failure(self) -> None:
        """Send it no requests for a while, if there are other servers."""
        self._num_failures += 1
        seconds = min(_DOWN_S * 2 ** (self._num_failures - 1), _MAX_DOWN_S)
        self._down_until_s = time.monotonic() + seconds

    def note_success(self) -> None:
        """Use it again."""
        self._num_failures, self._down_until_s = 0, 0.0


@dataclass(eq=False, slots=True)
class Session:
    """The requests of one answer, which stay at one server so that its prefix cache is warm.

    Attributes:
        id: Sent as `X-Session-ID`, for routers between client and servers.
        endpoint: The server; None before the first request.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    endpoint: Endpoint | None = None

    def move_to(self, endpoint: Endpoint) -> None:
        """Stay at another server from now on."""
        self.release()
        self.endpoint = endpoint
        endpoint.num_sessions += 1

    def release(self) -> None:
        """Belong to no server."""
        if self.endpoint is not None:
            self.endpoint.num_sessions -= 1
            self.endpoint = None


class Endpoints:
    """Chooses a server for each request.

    A session stays at its server while that is up. A new session goes to the server with the fewest
    sessions and requests; among equals, texts with the same beginning go to the same one.

    Args:
        urls: The base URLs.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.all = tuple(Endpoint(url) for url in urls)

    def choose(
        self, session: Session, prefix: Sequence[int] = (), tried: Collection[Endpoint] = ()
    ) -> Endpoint:
        """Return the server for a request.

        Args:
            session: Stays at the chosen server.
            prefix: The token ids of the request.
            tried: Servers that have failed to answer it; they are used if all have.
        """
        stays = session.endpoint
        if stays is not None and stays not in tried and not stays.is_down:
            return stays
        fresh = [each for each in self.all if each not in tried]
        usable = [each for each in fresh if not each.is_down] or fresh or list(self.all)
        head = repr(tuple(prefix[:64])).encode()
        chosen = min(
            usable,
            key=lambda each: (each.num_sessions + each.num_in_flight, _affinity(each.url, head)),
        )
        if chosen is not stays:
            session.move_to(chosen)
        return chosen

    def has_other(self, tried: Collection[Endpoint]) -> bool:
        """Whether a server that has not been tried is up."""
        return any(each not in tried and not each.is_down for each in self.all)


def _affinity(url: str, head: bytes) -> bytes:
    """Return a rank of a server for a text (rendezvous hashing: the least one wins)."""
    return hashlib.blake2b(url.encode() + b"\0" + head, digest_size=8).digest()
