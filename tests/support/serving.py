"""Run servers of small models on loopback, and read scores of transformers models for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import uvicorn

from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import OpenAIServerModel, TransformersModel
from tests.support.engines import wait_until
from tests.support.model_servers import TestServer
from tests.support.server_faults import Served


@contextmanager
def serving(served: Served, port: int = 0) -> Iterator[TestServer]:
    """Run a server on loopback, on a free port unless one is given."""
    app = TestServer(served)
    config = uvicorn.Config(app, lifespan="off", log_level="critical", ws="none", loop="asyncio")
    server = uvicorn.Server(config)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    app.url = f"http://127.0.0.1:{sock.getsockname()[1]}"

    async def run() -> None:
        await server.serve([sock])
        for _ in range(5):  # connections that were being accepted
            cut()
            await asyncio.sleep(0.01)

    def cut() -> None:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    def kill() -> None:
        """End at once: refuse connections, and cut those that are open."""
        app.killed = True
        with suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(cut)
        server.should_exit = True

    thread = Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    loop = server.servers[0].get_loop()
    app.kill = kill
    try:
        yield app
    finally:
        if app.held is not None:
            app.held.set()
        kill()
        thread.join(10)
        sock.close()


def classifier_scores(model: Any) -> Callable[[Sequence[Sequence[int]]], list[list[float]]]:
    """Return the raw scores of a transformers classifier, each input alone."""

    @torch.inference_mode()
    def score(rows: Sequence[Sequence[int]]) -> list[list[float]]:
        return [model(input_ids=torch.tensor([list(row)])).logits[0].tolist() for row in rows]

    return score


def next_logprobs(model: Any) -> Callable[[Sequence[int]], torch.Tensor]:
    """Return the log-probabilities of the next token, `(vocab,)`, by a transformers model."""

    @torch.inference_mode()
    def read(ids: Sequence[int]) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
        return logits.double().log_softmax(-1)

    return read


def scores_of_tokens(model: Any) -> Callable[[Sequence[int]], list[list[float]]]:
    """Return the raw scores of each token by a transformers token classifier."""

    @torch.inference_mode()
    def read(ids: Sequence[int]) -> list[list[float]]:
        scores: list[list[float]] = model(input_ids=torch.tensor([list(ids)])).logits[0].tolist()
        return scores

    return read


@contextmanager
def served_model(config: TransformersModel, folder: Path) -> Iterator[OpenAIServerModel]:
    """Serve a model that is in memory; its tokenizer and config are written to a folder."""
    config.tokenizer.save_pretrained(folder)
    config.model.config.save_pretrained(folder)
    backend = TransformersBackend(config)
    limit = backend.context_len or 4096
    with serving(Served(backend, codec=backend.codec, max_model_len=limit)) as running:
        yield OpenAIServerModel(base_url=running.url, tokenizer_name_or_path=str(folder))
