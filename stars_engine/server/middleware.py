"""What surrounds every request: facts, limits, keys, the access log and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stars_engine.server.delivery import report, sse
from stars_engine.server.errors import (
    ApiError,
    response_of,
    shortened,
    too_many_requests,
    unavailable,
)
from stars_engine.server.facts import RequestFacts, facts_in
from stars_engine.server.settings import ApiKeys, ServerParams, host_of
from stars_engine.server.state import State
from stars_engine.server.telemetry import Tracing

access_logger = logging.getLogger("stars_engine.server.access")

# The page is text that anyone may read; what it calls needs a key like any other request.
_PROBES = frozenset({"/healthz", "/readyz"})  # asked often; a log of them says nothing
_OPEN = _PROBES | frozenset({"/", "/page.js", "/page.css", "/favicon.ico"})
_UNLIMITED = _OPEN | {"/metrics"}


class Observed:
    """Gives each request an id, and logs and counts it when it has ended.

    The log has neither prompts nor answers, nor any other text of a client.

    Args:
        app: The application.
        get_state: Returns the state of the server.
        tracing: Makes spans; None makes none.
    """

    def __init__(
        self, app: ASGIApp, get_state: Callable[[], State], tracing: Tracing | None = None
    ) -> None:
        self._app, self._get_state = app, get_state
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts, status, asked = facts_in(scope), 0, scope
        if scope["method"] == "HEAD":  # the same as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = facts.request_id
            await send(message)

        try:
            with self._span(scope, facts):
                await self._app(scope, receive, observed_send)
        finally:
            # As nginx has it: the client closed the connection before there was a response.
            status = status or 499
            facts.endpoint = getattr(scope.get("route"), "path", "")
            self._get_state().metrics.observe(facts, status)
            level = logging.DEBUG if scope["path"] in _PROBES else logging.INFO
            access_logger.log(level, "%s", _line(asked, facts, status))

    def _span(self, scope: Scope, facts: RequestFacts) -> AbstractContextManager[None]:
        return nullcontext() if self._tracing is None else self._tracing.span(scope, facts)


class Limited:
    """Refuses requests for other hosts, without a key, beyond the limits, or while stopping.

    Errors that no handler knows become responses here.

    Args:
        app: The application.
        get_state: Returns the state of the server.
        keys: The keys; without any, no key is needed.
    """

    def __init__(self, app: ASGIApp, get_state: Callable[[], State], keys: ApiKeys) -> None:
        self._app, self._get_state, self._keys = app, get_state, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, path, facts = self._get_state(), scope["path"], facts_in(scope)
        with ExitStack() as stack:
            try:
                headers = Headers(scope=scope)
                self._check_host(headers, state.params)
                if len(self._keys) and path not in _OPEN and scope["method"] != "OPTIONS":
                    facts.key = self._key_of(headers)
                if path not in _UNLIMITED:
                    self._check(state)
                    stack.enter_context(state.key_limits.count(facts))
                    stack.enter_context(_in_progress(state))
                    receive = _bounded(receive, headers, state.params)
            except ApiError as error:
                facts.error = error.code
                await response_of(error)(scope, receive, send)
                return

            await self._serve(scope, receive, send, stack)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, stack: ExitStack) -> None:
        """Serve a request that is within the limits; leave the stack when its end is sent."""
        facts, has_started = facts_in(scope), False

        async def releasing_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            # The client may send its next request as soon as it has the end of this response.
            if message["type"] == "http.response.body" and not message.get("more_body"):
                stack.close()
            await send(message)

        try:
            await self._app(scope, receive, releasing_send)
        except asyncio.CancelledError:
            if not self._get_state().draining:
                raise
            await _cut_off(facts, scope, receive, releasing_send, has_started=has_started)
        except Exception as error:
            if has_started:
                raise
            # If the error left the application, uvicorn would also close the connection.
            response = response_of(report(facts, error))
            await response(scope, receive, releasing_send)

    def _check(self, state: State) -> None:
        if state.draining:
            raise unavailable("The server is stopping. Hint: retry later", "server_stopping")
        if state.num_requests >= state.params.max_requests:
            count = state.params.max_requests
            raise too_many_requests(f"{count} requests are in progress. Hint: retry later")

    def _check_host(self, headers: Headers, params: ServerParams) -> None:
        """Refuse a page whose own name leads to this server, which browsers let it call freely."""
        allowed = params.allowed_hosts
        if allowed is None or "*" in allowed or host_of(headers.get("host", "")) in allowed:
            return
        name = shortened(headers.get("host", ""))
        message = (
            f"The Host header {name!r} names none of this server's hosts, which are "
            f"{', '.join(allowed)}. Hint: address the server by one of them, or start it with "
            "--allowed-host NAME"
        )
        raise ApiError(421, message, code="host_not_allowed")

    def _key_of(self, headers: Headers) -> str:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        found = self._keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            message = "A valid API key is required. Hint: send the header Authorization: Bearer KEY"
            headers_of_error = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers_of_error)
        return found


async def _cut_off(
    facts: RequestFacts, scope: Scope, receive: Receive, send: Send, *, has_started: bool
) -> None:
    """End a response whose time is over after SIGTERM; a stream ends with an error event."""
    error = unavailable("The server has stopped. Hint: retry later", "server_stopping")
    facts.error = error.code
    if not has_started:
        await response_of(error)(scope, receive, send)
    elif facts.streamed:
        await send({"type": "http.response.body", "body": sse(error.body).encode()})


@contextmanager
def _in_progress(state: State) -> Iterator[None]:
    state.num_requests += 1
    state.metrics.in_progress.inc()
    try:
        yield
    finally:
        state.num_requests -= 1
        state.metrics.in_progress.dec()


def _bounded(receive: Receive, headers: Headers, params: ServerParams) -> Receive:
    """Return a `receive` that refuses bodies that are too large, said or not said to be, or late.

    Raises:
        ApiError: The headers say that the body is too large, or compressed.
    """
    max_bytes, limit_s = params.max_body_bytes, params.receive_timeout_s
    message = f"The body is larger than {max_bytes} bytes. Hint: send less"
    said = headers.get("content-length", "")
    if said.isdecimal() and int(said[:20]) > max_bytes:
        raise ApiError(413, message, code="body_too_large")
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        message = f"Bodies with Content-Encoding {shortened(encoding)} are not read. Hint: send "
        raise ApiError(415, f"{message}the body uncompressed", code="unsupported_encoding")
    received, is_complete, until_s = 0, False, time.monotonic() + limit_s

    async def bounded() -> Message:
        nonlocal received, is_complete
        if is_complete:  # what follows is that the client disconnects
            return await receive()
        try:
            part = await asyncio.wait_for(receive(), max(0.0, until_s - time.monotonic()))
        except TimeoutError:
            late = f"The body has not arrived in {limit_s:g} s. Hint: send it at once"
            raise HTTPException(408, late, headers={"Connection": "close"}) from None
        received += len(part.get("body", b""))
        is_complete = not part.get("more_body", False)
        if received > max_bytes:
            raise HTTPException(413, message)
        return part

    return bounded


def _line(scope: Scope, facts: RequestFacts, status: int) -> str:
    entry: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "id": facts.request_id,
        "method": scope["method"],
        "path": facts.endpoint or "other",
        "status": status,
        "duration_s": round(time.monotonic() - facts.started_s, 4),
        "client": scope["client"][0] if scope.get("client") else None,
        "key": facts.key,
        "model": facts.model,
        "stream": facts.streamed,
        "completed": facts.completed if facts.streamed else status != 499,
        "error": facts.error,
    }
    if facts.first_segment_s is not None:
        entry["first_segment_s"] = round(facts.first_segment_s, 4)
    if facts.num_choices:
        entry |= {
            "finish_reasons": dict(facts.finish_reasons),
            "tokens": dict(facts.tokens),
            "segments": dict(facts.verdicts),
        }
    return json.dumps({name: value for name, value in entry.items() if value is not None})
