"""Requests to the servers of one model: pooled connections, retries, fail-over, an own thread."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import tenacity

from stars_engine.config.servers import Server
from stars_engine.errors import ModelLoadError, ServerError, ServerFault, needs_extra
from stars_engine.redaction import redact
from stars_engine.remote.endpoints import Endpoint, Endpoints, Session
from stars_engine.remote.event_loop import ClientLoop
from stars_engine.remote.failures import (
    MalformedAnswerError,
    fault_of,
    message_of,
    refusal,
    retry_after_s,
    said_of,
)
from stars_engine.remote.stats import ServerStats

if TYPE_CHECKING:
    import httpx

Parsed = TypeVar("Parsed")

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_WAIT_S = 5.0  # between two attempts, unless the server asks for more
_HEALTH_S = 2.0  # for an answer to the question whether a server is healthy


class _FailedAttemptError(Exception):
    """One attempt failed in a way that another attempt may not.

    Attributes:
        fault: See `ServerError`.
        retry_after_s: How long the server asks to wait; None if it says nothing.
    """

    def __init__(
        self, message: str, fault: ServerFault, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.fault: ServerFault = fault
        self.retry_after_s = retry_after_s


class ServerClient:
    """Calls the servers of one model.

    Coroutines run on a thread of the client's own, which starts with the first request and ends
    with `close`, or when the client is collected.

    Args:
        server: The servers, and how to call them.

    Attributes:
        endpoints: The servers.
        stats: Counts of requests.
    """

    def __init__(self, server: Server) -> None:
        with needs_extra("remote"):
            import httpx  # noqa: F401, PLC0415 - an extra of its own
        self.server = server
        self.endpoints = Endpoints(server.base_url)
        self.stats = ServerStats()
        self._loop = ClientLoop("stars-servers")
        self._http: httpx.AsyncClient | None = None
        self._key = _api_key(server)

    def run(self, coroutine: Any) -> Any:
        """Wait for the result of a coroutine."""
        return self._loop.run(coroutine)

    def submit(self, coroutine: Any) -> Future[Any]:
        """Start a coroutine; return a future. Cancelling it closes the connection."""
        return self._loop.submit(coroutine)

    def close(self) -> None:
        """Cancel all requests and end the thread."""
        http, self._http = self._http, None
        self._loop.close(None if http is None else http.aclose)

    async def call(
        self,
        path: str,
        body: dict[str, Any],
        parse: Callable[[Any], Parsed],
        *,
        session: Session | None = None,
        prefix: Sequence[int] = (),
        endpoint: Endpoint | None = None,
    ) -> Parsed:
        """POST a body and return the parsed answer; retry, and use other servers, as needed.

        Args:
            path: Path of the endpoint.
            body: The body, as JSON.
            parse: Reads the answer's body.
            session: The session of the request; None for a session of its own.
            prefix: Token ids of the request, for the choice of a server.
            endpoint: The only server to ask; None for any.

        Raises:
            ServerError: No server answered in time, or one refused the request.
        """
        own = session is None
        session = session or Session()
        tried: set[Endpoint] = set()
        last: Endpoint | None = None
        try:
            async with asyncio.timeout(self.server.timeout_s):
                async for attempt in self._attempts(tried):
                    with attempt:
                        chosen = endpoint or self.endpoints.choose(session, prefix, tried)
                        self.stats.num_retries += last is not None
                        self.stats.num_failovers += last is not None and chosen is not last
                        last = chosen
                        try:
                            found = await self._post(chosen, path, body, session, parse)
                        except _FailedAttemptError:
                            tried.add(chosen)
                            raise
                        chosen.note_success()
                        self.stats.num_requests += 1
                        return found
        except TimeoutError:
            for each in (last, *tried):
                if each is not None:
                    each.note_failure()
            said = f"no answer within {self.server.timeout_s:g} s"
            raise self._failed(last, said, "timeout") from None
        except _FailedAttemptError as error:
            raise self._failed(last, str(error), error.fault) from None
        finally:
            if own:
                session.release()
        raise AssertionError("an attempt returns or raises")

    async def get(self, path: str, endpoint: Endpoint) -> Any:
        """GET a path of one server; return the JSON, the text, or None if it has no such path.

        Raises:
            ServerError: The server could not be reached.
        """
        import httpx  # noqa: PLC0415 - an extra of its own

        try:
            answer = await self._client().get(endpoint.url + path, headers=self._headers())
        except httpx.HTTPError as error:
            raise self._failed(endpoint, said_of(error), fault_of(error)) from None
        if answer.status_code in (401, 403):
            raise refusal(endpoint, path, answer.status_code, answer.text)
        if answer.status_code >= 400:
            return None
        try:
            return answer.json()
        except ValueError:
            return answer.text

    async def is_available(self) -> bool:
        """Ask each server for its health; return whether one answers without an error."""
        return any(await asyncio.gather(*map(self._is_healthy, self.endpoints.all)))

    async def _is_healthy(self, endpoint: Endpoint) -> bool:
        import httpx  # noqa: PLC0415 - an extra of its own

        try:
            answer = await self._client().get(
                f"{endpoint.url}/health", headers=self._headers(), timeout=_HEALTH_S
            )
        except httpx.HTTPError:
            return False
        return answer.status_code < 500  # a server without this path answers too

    # --- one attempt ---

    async def _post(
        self,
        endpoint: Endpoint,
        path: str,
        body: dict[str, Any],
        session: Session,
        parse: Callable[[Any], Parsed],
    ) -> Parsed:
        import httpx  # noqa: PLC0415 - an extra of its own

        endpoint.num_in_flight += 1
        try:
            answer = await self._client().post(
                endpoint.url + path, json=body, headers=self._headers(session)
            )
        except httpx.HTTPError as error:
            endpoint.note_failure()
            raise _FailedAttemptError(said_of(error), fault_of(error)) from None
        finally:
            endpoint.num_in_flight -= 1
        status = answer.status_code
        if status in _RETRIED:
            if status != 429:  # a server at its limit is not down
                endpoint.note_failure()
            wait_s = retry_after_s(answer.headers.get("retry-after"))
            fault: ServerFault = "timeout" if status in (408, 504) else "unavailable"
            raise _FailedAttemptError(f"status {status}: {message_of(answer.text)}", fault, wait_s)
        if status >= 400:
            raise refusal(endpoint, path, status, answer.text)
        try:
            return parse(answer.json())
        except (MalformedAnswerError, ValueError, TypeError, LookupError, AttributeError) as error:
            endpoint.note_failure()
            shown = message_of(str(error) or type(error).__name__)
            said = f"a malformed answer from {path} ({shown})"
            raise _FailedAttemptError(said, "bad_answer") from None

    def _attempts(self, tried: set[Endpoint]) -> tenacity.AsyncRetrying:
        backoff = tenacity.wait_random_exponential(multiplier=0.1, max=_MAX_WAIT_S)

        def wait(state: tenacity.RetryCallState) -> float:
            if self.endpoints.has_other(tried):
                return 0.0
            assert state.outcome is not None
            asked = getattr(state.outcome.exception(), "retry_after_s", None)
            jittered = backoff(state)
            return jittered if asked is None else asked + jittered / 10

        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.server.http_retries + 1),
            wait=wait,
            retry=tenacity.retry_if_exception_type(_FailedAttemptError),
            reraise=True,
        )

    # --- connections ---

    def _client(self) -> httpx.AsyncClient:
        """Return the pool of connections; made on the loop's thread, to which it belongs."""
        import httpx  # noqa: PLC0415 - an extra of its own

        if self._http is None:
            server = self.server
            timeout = httpx.Timeout(server.timeout_s, connect=server.connect_timeout_s)
            limits = httpx.Limits(
                max_connections=server.max_connections,
                max_keepalive_connections=server.max_connections,
            )
            verify: ssl.SSLContext | bool = True
            if server.ca_file is not None:
                verify = ssl.create_default_context(cafile=os.path.expanduser(server.ca_file))  # noqa: PTH111
            self._http = httpx.AsyncClient(timeout=timeout, limits=limits, verify=verify)
        return self._http

    def _headers(self, session: Session | None = None) -> dict[str, str]:
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        return headers if session is None else {**headers, "X-Session-ID": session.id}

    def _failed(self, endpoint: Endpoint | None, said: str, fault: ServerFault) -> ServerError:
        urls = endpoint.url if endpoint and len(self.endpoints.all) == 1 else _urls(self.endpoints)
        known = [] if self._key is None else [self._key]
        return ServerError(
            f"{urls} did not answer: {redact(said, known)}. Hint: check that the server runs and "
            "is reachable, or raise timeout_s or http_retries",
            fault=fault,
        )


def _api_key(server: Server) -> str | None:
    if server.api_key is not None:
        return server.api_key.get_secret_value()
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env)
    if not key:
        raise ModelLoadError(
            f"api_key_env={server.api_key_env!r}: this environment variable is not set. Hint: set "
            "it to the server's API key, or leave api_key_env out"
        )
    return key


def _urls(endpoints: Endpoints) -> str:
    return " and ".join(each.url for each in endpoints.all)
