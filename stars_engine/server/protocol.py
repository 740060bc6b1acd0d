"""HTTP on one connection: late or malformed heads of requests end it, and readers that stop."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from stars_engine.server.errors import ApiError

_BEFORE_RESPONSE = (h11.IDLE, h11.SEND_RESPONSE)


class BoundedProtocol(H11Protocol):
    """Closes connections that do not send the head of a request in time, or do not read.

    uvicorn bounds the time between requests, but not the time that a head takes, and it waits for
    clients that do not read. Bodies are bounded by `Limited`, which knows the API key.

    Args:
        receive_timeout_s: Seconds from the first byte of a head to its last one, and from the
            beginning of a connection to its first request.
        send_timeout_s: Seconds in which a client must read something, if much is to be sent.
        **options: Arguments of uvicorn's protocol.
    """

    def __init__(self, *, receive_timeout_s: float, send_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._receive_timeout_s, self._send_timeout_s = receive_timeout_s, send_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        self._stop_sending()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request. Until its head is complete, the time that it takes counts."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head_timer is None and not self.transport.is_closing():
            self._await_head()

    def pause_writing(self) -> None:
        """Wait until the client has read most of what is to be sent."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Send more."""
        self._stop_sending()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        super().timeout_keep_alive_handler()
        self._close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and close the connection."""
        if self.conn.our_state in _BEFORE_RESPONSE:
            hint = "Hint: send HTTP/1.1, with at most 64 KiB of headers"
            body = json.dumps(ApiError(400, f"{msg} {hint}", code="invalid_request").body).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    def _should_upgrade(self) -> bool:
        """Ignore requests for other protocols; uvicorn would recommend packages for WebSockets."""
        return False

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self._receive_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self._close()

    def _await_reader(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(self._send_timeout_s, self._check_reader, unsent)

    def _stop_sending(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _check_reader(self, unsent: int) -> None:
        """Wait on if the client has read something, else end the connection."""
        if self.transport.get_write_buffer_size() < unsent:
            self._await_reader()
        else:
            self.transport.abort()

    def _close(self) -> None:
        """Close the connection; what the client has not read by now is dropped."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()
