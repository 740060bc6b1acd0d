"""Connections that are slow, malformed or cut: typed errors, and nothing stays open."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from stars_engine.server import health
from stars_engine.server.protocol import BoundedProtocol
from tests.support.engines import wait_until
from tests.support.servers import HELLO, RunningServer, random_chat, serving

CHAT = "/v1/chat/completions"
REQUEST = {"model": "chat", "messages": HELLO, "max_tokens": 4}
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


def connect(running: RunningServer) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def received(connection: socket.socket) -> bytes:
    """Return everything until the server closes the connection."""
    found = b""
    while part := connection.recv(4096):
        found += part
    return found


def test_heads_and_bodies_that_do_not_arrive_in_time() -> None:
    with serving({"chat": random_chat()}, receive_timeout_s=0.2) as running:
        body = json.dumps(REQUEST).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode()
        head += f"Content-Length: {len(body)}\r\n\r\n".encode()
        with connect(running) as idle, connect(running) as half, connect(running) as used:
            half.sendall(GET)
            used.sendall(GET + b"\r\n")
            assert used.recv(15) == b"HTTP/1.1 200 OK"
            used.sendall(GET)  # the second head of a connection
            assert received(idle) == received(half) == b""
            assert b"HTTP" not in received(used)
        with connect(running) as connection:
            connection.sendall(head + body[:-1])
            answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
        assert running.server.state_of_app.num_requests == 0
        wait_until(lambda: not running.server.server_state.connections)


def test_connections_that_are_used_stay_open() -> None:
    chat = {"chat": random_chat()}
    with serving(chat, receive_timeout_s=0.2) as running, connect(running) as connection:
        for _ in range(2):
            connection.sendall(GET + b"\r\n")
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                answer += connection.recv(4096)
        [protocol] = running.server.server_state.connections
        assert protocol._head_timer is None  # type: ignore[union-attr]


def test_clients_that_do_not_read() -> None:
    """Their connections end, and others are served meanwhile."""
    request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chat = {"chat": random_chat()}
    with (
        serving(chat, send_timeout_s=0.2) as running,
        running.http() as client,
        socket.socket() as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = running.url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        connection.sendall(200 * request)  # more than the buffers of the kernel hold
        state = running.server.state_of_app
        wait_until(lambda: state.num_requests == 1)
        assert client.get("/healthz").is_success
        wait_until(lambda: len(running.server.server_state.connections) == 1)  # the client's
        wait_until(lambda: state.num_requests == 0)


async def test_clients_that_read_slowly() -> None:
    """A connection stays open while something is read."""

    class Transport(asyncio.Transport):
        unsent, aborted = 100_000, False

        def get_write_buffer_size(self) -> int:
            return self.unsent

        def abort(self) -> None:
            self.aborted = True

        def close(self) -> None:
            pass

    transport = Transport()
    protocol = BoundedProtocol(
        config=uvicorn.Config(FastAPI(), log_config=None),
        server_state=ServerState(),
        app_state={},
        receive_timeout_s=60.0,
        send_timeout_s=60.0,
    )
    protocol.connection_made(transport)
    protocol.pause_writing()
    transport.unsent -= 1
    protocol._check_reader(100_000)
    assert not transport.aborted
    protocol._check_reader(transport.unsent)
    assert transport.aborted
    protocol.connection_lost(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\r\n\r\n",
        GET + b"X: " + b"a" * 100_000,
        GET + b"Content-Length: x\r\n\r\n",
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode()
        + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n",
    ],
)
def test_what_is_not_http(server: RunningServer, sent: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(sent)
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_request"


def test_requests_for_other_protocols_are_answered_in_http(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server) as connection:
        connection.sendall(GET + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
        assert received(connection).startswith(b"HTTP/1.1 200 ")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_compressed_bodies(server: RunningServer) -> None:
    content = gzip.compress(json.dumps(REQUEST).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    with server.http() as client:
        answer = client.post(CHAT, content=content, headers=headers)
        assert client.post(CHAT, json=REQUEST, headers={"content-encoding": "identity"}).is_success
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_encoding"


def test_a_connection_stays_open_after_errors(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after one that no handler knows."""

    def fail(model: Any) -> None:
        raise RuntimeError("a fault of the server")

    with server.http(limits=httpx.Limits(max_connections=1)) as client:
        bodies: list[Any] = [b"{", json.dumps({"model": "no"}).encode(), b"[" * 10**5]
        for body in bodies:
            answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
            assert answer.status_code in (400, 404)
        port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
        with monkeypatch.context() as patched:
            patched.setattr(health, "_model_of", fail)
            failed = client.get("/v1/models")
        assert failed.status_code == 500
        assert failed.json()["error"]["code"] == "internal_error"
        assert "fault" not in failed.text
        whole = client.get("/v1/models")
        assert whole.status_code == 200
        assert whole.extensions["network_stream"].get_extra_info("client_addr")[1] == port
