"""Deliver answers: whole ones until the client disconnects, and streams as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus

from stars_engine.engine.streams import AsyncSegmentStream
from stars_engine.errors import RequestError, describe_error
from stars_engine.server.errors import ApiError, api_error_of
from stars_engine.server.facts import RequestFacts, facts_of
from stars_engine.server.settings import ServerParams
from stars_engine.types import SegmentEvent

logger = logging.getLogger(__name__)

# By default, the library ends all streams of the process when uvicorn gets SIGTERM. Here, streams
# in progress may end by themselves for `ServerParams.drain_s`.
AppStatus.enable_automatic_graceful_drain = False

Value = TypeVar("Value")


class ClientDisconnectedError(Exception):
    """The client closed the connection before its answer was complete."""


async def until_disconnect(request: Request, work: Awaitable[Value]) -> Value:
    """Await work, and cancel it when the client disconnects.

    Raises:
        ClientDisconnectedError: The client disconnected first.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnectedError
        return task.result()
    except RequestError as error:
        if error.result is not None:
            facts_of(request).note_result(error.result)
        raise
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def sse(body: BaseModel | dict[str, object], event: str | None = None) -> ServerSentEvent:
    """Return one server-sent event with JSON in it."""
    if isinstance(body, BaseModel):
        # Non-ASCII characters are escaped, so that no reader takes one of them for a line break.
        data = json.dumps(body.model_dump(mode="json", exclude_unset=True), allow_nan=False)
    else:
        data = json.dumps(body, allow_nan=False)
    return ServerSentEvent(data=data, event=event, sep="\n")


DONE = ServerSentEvent(data="[DONE]", sep="\n")


async def accepted(request: Request, stream: AsyncSegmentStream) -> AsyncIterator[SegmentEvent]:
    """Yield the events of a stream; answers that end with an error have no last event.

    Leaving the iteration cancels the requests.
    """
    facts = facts_of(request)
    async with stream as events:
        async for event in events:
            facts.note(event)
            if event.result is None or event.result.finish_reason != "error":
                yield event


def event_stream(
    request: Request, events: AsyncIterator[ServerSentEvent], params: ServerParams
) -> EventSourceResponse:
    """Return a response that sends events, and an error in OpenAI's shape if one occurs."""
    return EventSourceResponse(
        _with_errors(request, events),
        sep="\n",
        ping=params.keep_alive_s,
        ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
        # `BoundedProtocol` ends the connection first; other servers do not.
        send_timeout=params.send_timeout_s + 1.0,
    )


async def _with_errors(
    request: Request, events: AsyncIterator[ServerSentEvent]
) -> AsyncIterator[ServerSentEvent]:
    facts = facts_of(request)
    facts.streamed = True
    try:
        async for event in events:
            yield event
        facts.completed = facts.error is None
    except Exception as error:  # noqa: BLE001 - the client gets every error as an event
        yield sse(report(facts, error).body)


def report(facts: RequestFacts, error: Exception) -> ApiError:
    """Log an error that is not the client's; return it as clients get it."""
    api_error = api_error_of(error)
    facts.error = api_error.code or api_error.kind
    if api_error.status >= 500 and not isinstance(error, ApiError):
        logger.error(
            "Request %s failed: %s", facts.request_id, describe_error(error), exc_info=error
        )
    return api_error
