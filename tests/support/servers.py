"""Servers in a thread of the test, on a free port of the loopback interface."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from stars_engine import (
    AlignParams,
    FunctionReward,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    TransformersModel,
)
from stars_engine.server.models import ServedModel
from stars_engine.server.run import StarsServer
from stars_engine.server.settings import ApiKeys, ServerParams
from tests.support.chat_templates import random_llama, tokenizer_of

HELLO = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class RunningServer:
    """A server that accepts connections."""

    url: str
    server: StarsServer

    @property
    def base_url(self) -> str:
        """What clients of OpenAI take as `base_url`."""
        return f"{self.url}/v1"

    def model(self, name: str) -> ServedModel:
        return self.server.state_of_app.models.get(name)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def send(
        self, body: bytes, path: str = "/v1/chat/completions", key: str = "none"
    ) -> socket.socket:
        """Send a request by hand, and return the connection, from which the test reads."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=60)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {key}\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return connection


@contextmanager
def serving(
    configs: Mapping[str, StarsConfig],
    keys: ApiKeys | None = None,
    *,
    wait: bool = True,
    **params: Any,
) -> Iterator[RunningServer]:
    """Serve models while the context is open."""
    started = threading.Event()
    settings = ServerParams(**{"port": 0, "drain_s": 5.0, **params})
    server = StarsServer(configs, settings, keys, on_started=lambda _: started.set())
    thread = threading.Thread(target=server.run, name="test server", daemon=True)
    thread.start()
    try:
        assert started.wait(60)
        models = server.state_of_app.models
        if wait:
            assert server.loaded.wait(60)
            assert all(model.state == "ready" for model in models)
        yield RunningServer(server.url, server)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def random_chat(
    reward: Callable[..., Any] = lambda _, completion: float(len(completion) % 3),
    *,
    template: str | None = "hermes",
    end_bias: float = 0.0,
    function: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    **align: Any,
) -> StarsConfig:
    """A chat model with random weights, which writes printable ASCII, and a function as reward.

    Its answers are shorter with a larger `end_bias`.
    """
    tokenizer = tokenizer_of(template)
    printable = {*map(chr, range(33, 127)), "Ġ"}
    control = set(tokenizer.all_special_tokens)
    bias = {
        index: -100.0
        for piece, index in tokenizer.get_vocab().items()
        if piece not in printable and piece not in control
    }
    bias[tokenizer.eos_token_id] = end_bias
    settings = {"schedule": NoSchedule(), "segment_len": 4, "num_candidates": 2, **align}
    return StarsConfig(
        model=TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer),
        reward=FunctionReward(function=reward, **(function or {})),
        align=AlignParams(**settings),
        sampling=SamplingParams(
            **{
                "max_tokens": 24,
                "temperature": 1.0,
                "top_k": None,
                "logit_bias": bias,
                **(sampling or {}),
            }
        ),
    )
