"""Run the application in this process until a signal ends it, and let requests in progress end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import uvicorn

from stars_engine.config import StarsConfig
from stars_engine.server.app import create_app
from stars_engine.server.models import ServedModels
from stars_engine.server.protocol import BoundedProtocol
from stars_engine.server.settings import LOCAL_HOSTS, ApiKeys, ServerParams
from stars_engine.server.sockets import bind
from stars_engine.server.state import State

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MAX_HEADER_BYTES = 64 * 1024
_IDLE_S = 75  # longer than clients keep idle connections, so that they close them first
_TICK_S = 0.05  # between two looks for a second signal
_REPEAT_S = 0.1  # `timeout` signals a process and then its group: that is one signal


class StarsServer(uvicorn.Server):
    """A server that drains: after a signal it refuses new requests, and those in progress end.

    Requests that have not ended after `ServerParams.drain_s`, or at a second signal, are cut off.

    Args:
        configs: The configuration of each model, by the name that clients use.
        params: Settings of the server.
        keys: The API keys; by default, no key is needed.
        on_started: Called with the address when the server accepts connections.
        on_cut_off: Called with the number of a second signal. The server then waits for no request,
            but for the step that its models are in.

    Attributes:
        loaded: Set when all models are ready or have failed.
        load_failed: Whether none could be loaded.
        cut_off_by: The number of a second signal; None without one.
    """

    def __init__(
        self,
        configs: Mapping[str, StarsConfig],
        params: ServerParams,
        keys: ApiKeys | None = None,
        *,
        on_started: Callable[[str], None] = lambda _: None,
        on_cut_off: Callable[[int], None] = lambda _: None,
    ) -> None:
        if params.allowed_hosts is None and params.is_local and not keys:
            params = params.replace(allowed_hosts=LOCAL_HOSTS)
        self._params, self._on_started, self._on_cut_off = params, on_started, on_cut_off
        self.loaded = threading.Event()
        self.load_failed = False
        self.cut_off_by: int | None = None
        self._signalled_s: float | None = None
        app = create_app(configs, params, keys, on_loaded=self._on_loaded)
        self.state_of_app: State = app.state.server
        protocol: Any = functools.partial(
            BoundedProtocol,
            receive_timeout_s=params.receive_timeout_s,
            send_timeout_s=params.send_timeout_s,
        )
        super().__init__(
            uvicorn.Config(
                app,
                host=params.host,
                port=params.port,
                http=protocol,
                ws="none",
                log_config=None,
                access_log=False,  # the application logs requests, without query strings
                server_header=False,
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=math.ceil(params.drain_s),
            )
        )

    @property
    def url(self) -> str:
        """The address of the server, once it accepts connections."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting connections, then load the models.

        Raises:
            ConfigError: The address cannot be used.
        """
        if sockets is None:
            sockets = bind(self._params.host, self._params.port)
        await super().startup(sockets=sockets)
        if self.servers:
            self._on_started(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let requests in progress end; a second signal cuts them off."""
        if num_requests := self.state_of_app.num_requests:
            logger.info(
                "Stopping. Requests in progress: %d. They may take %g s; a second signal cuts them "
                "off",
                num_requests,
                self._params.drain_s,
            )
        ending = asyncio.ensure_future(super().shutdown(sockets))
        while not ending.done() and self.cut_off_by is None:
            await asyncio.wait({ending}, timeout=_TICK_S)
        if not ending.done():
            await self._cut_off()
        await ending

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop accepting connections, and let requests in progress end, until the next signal."""
        now_s = time.monotonic()
        if self._signalled_s is None:
            self._signalled_s = now_s
            self.state_of_app.draining = self.should_exit = True
        elif self.cut_off_by is None and now_s > self._signalled_s + _REPEAT_S:
            self.cut_off_by = sig
            self._on_cut_off(sig)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving. uvicorn would raise them again after a clean end."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread gets signals
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _cut_off(self) -> None:
        """End all requests with an error, and then connections whose clients do not read it."""
        tasks = [*self.server_state.tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_TICK_S)
        await asyncio.sleep(_TICK_S)
        for connection in [*self.server_state.connections]:
            connection.transport.abort()

    def _on_loaded(self, models: ServedModels) -> None:
        """End the server if it has nothing to serve."""
        if all(model.state == "failed" for model in models):
            self.load_failed = True
            self.should_exit = True
        self.loaded.set()
