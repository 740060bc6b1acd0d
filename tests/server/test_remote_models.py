"""The server over models behind other servers: readiness, failures, disconnects."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    OpenAIServerModel,
    SamplingParams,
    ServerReward,
    StarsConfig,
    StarsEngine,
)
from stars_engine.server import models as served_models
from tests.support.engines import idle, wait_until
from tests.support.model_servers import TestServer
from tests.support.server_faults import Faults, Served
from tests.support.servers import RunningServer
from tests.support.servers import serving as serving_models
from tests.support.serving import classifier_scores, serving

PATH = "/v1/completions"
REQUEST = {"model": "remote", "prompt": "This movie", "max_tokens": 24, "seed": 5}
DRAFTS, REWARDS = "/inference/v1/generate", "/classify"


@pytest.fixture(scope="module")
def servers(engine: StarsEngine) -> Iterator[tuple[TestServer, TestServer]]:
    """A server of the language model, and one of the reward model."""
    scores = classifier_scores(engine.reward._model)
    rewards = Served(rewards=scores, codec=engine.reward._codec, max_model_len=384)
    with serving(Served(engine.model, codec=engine.model.codec)) as lm, serving(rewards) as rm:
        yield lm, rm


@pytest.fixture(scope="module")
def running(servers: tuple[TestServer, TestServer]) -> Iterator[RunningServer]:
    lm, rm = servers
    with serving_models({"remote": config_of(lm.url, rm.url)}, keep_alive_s=0.02) as running:
        yield running


@pytest.fixture
def lm(servers: tuple[TestServer, TestServer]) -> Iterator[TestServer]:
    yield servers[0]
    servers[0].faults = Faults()


@pytest.fixture
def rm(servers: tuple[TestServer, TestServer]) -> Iterator[TestServer]:
    yield servers[1]
    servers[1].faults = Faults()


def config_of(lm: str, rm: str, **fields: Any) -> StarsConfig:
    options = {"timeout_s": 30.0, "http_retries": 0, **fields}
    return StarsConfig(
        model=OpenAIServerModel(base_url=lm, tokenizer_name_or_path="stars:embedded-lm", **options),
        reward=ServerReward(base_url=rm, tokenizer_name_or_path="stars:embedded-reward", **options),
        align=AlignParams(
            schedule=ConstantSchedule(value=0.5), segment_len=8, num_candidates=2, max_attempts=4
        ),
        sampling=SamplingParams(max_tokens=24),
    )


@pytest.fixture
def remote(running: RunningServer, lm: TestServer, rm: TestServer) -> RunningServer:
    return running


def again(server: TestServer) -> AbstractContextManager[TestServer]:
    """Serve the same model: at the same address if the server has ended, else at another one."""
    port = int(server.url.rpartition(":")[2])
    return serving(server.served, port if server.killed else 0)


@pytest.fixture(autouse=True)
def checked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_models, "_CHECKED_S", 0.0)


def state_of(client: httpx.Client) -> tuple[int, str]:
    answer = client.get("/readyz")
    return answer.status_code, answer.json()["models"]["remote"]


def ask(running: RunningServer, **more: Any) -> httpx.Response:
    with running.http() as client:
        return client.post(PATH, json={**REQUEST, **more})


@pytest.mark.slow
def test_answers_are_those_of_the_engine(remote: RunningServer) -> None:
    engine = remote.model("remote").engine
    [result] = engine.generate(
        REQUEST["prompt"], sampling=engine.sampling.replace(seed=5, max_tokens=24)
    )
    answer = ask(remote)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == result.text
    chunks = [
        json.loads(line.removeprefix("data: "))
        for line in ask(remote, stream=True).text.splitlines()
        if line.startswith("data: {")
    ]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == result.text


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["lm", "rm"])
def test_readiness_follows_the_servers(
    lm: TestServer, rm: TestServer, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    with again({"lm": lm, "rm": rm}[gone]) as server:
        urls = {"lm": lm.url, "rm": rm.url, gone: server.url}
        with serving_models({"remote": config_of(**urls)}) as running, running.http() as client:
            assert state_of(client) == (200, "ready")
            server.kill()
            wait_until(lambda: state_of(client) == (503, "unavailable"))
            assert 'stars_model_ready{model="remote"} 0.0' in client.get("/metrics").text
            assert client.get("/v1/models/remote").json()["stars"] == {"state": "unavailable"}
            assert server.url not in client.get("/readyz").text
            assert f"{server.url} does not answer" in caplog.text
            answer = client.post(PATH, json=REQUEST)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "backend_unavailable"
            assert answer.headers["retry-after"]
            with again(server):
                wait_until(lambda: state_of(client) == (200, "ready"))
                assert client.post(PATH, json=REQUEST).status_code == 200


@pytest.mark.slow
def test_a_model_whose_server_starts_later(
    lm: TestServer, rm: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_models, "_RETRY_S", 0.01)
    with again(lm) as gone:
        gone.kill()
    configs = {"remote": config_of(gone.url, rm.url)}
    with serving_models(configs, wait=False) as running, running.http() as client:
        assert state_of(client) == (503, "loading")
        assert ask(running).json()["error"]["code"] == "model_loading"
        with again(gone):
            wait_until(lambda: state_of(client) == (200, "ready"))
            assert ask(running).status_code == 200


FAULTS = {
    "500": (Faults(status=500), 503, "backend_unavailable"),
    "429": (Faults(status=429), 503, "backend_unavailable"),
    "cut": (Faults(cuts=True), 503, "backend_unavailable"),
    "504": (Faults(status=504), 504, "backend_timeout"),
    "400": (Faults(status=400), 502, "backend_failed"),
    "malformed": (Faults(malformed=True), 502, "backend_failed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("faulty", ["language model", "reward model"])
def test_failures_of_servers(
    remote: RunningServer, lm: TestServer, rm: TestServer, faulty: str
) -> None:
    server = {"language model": lm, "reward model": rm}[faulty]
    for faults, status, code in FAULTS.values():
        server.faults = faults
        answer = ask(remote)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error["code"] == code
        assert f"The {faulty}'s server" in error["message"]
        assert ("retry-after" in answer.headers) == (status == 503)
        assert "planted" not in answer.text  # what servers say may contain a part of the prompt
        assert server.url not in answer.text
        stream = ask(remote, stream=True).text
        assert f'"code": "{code}"' in stream
        assert "[DONE]" not in stream


@pytest.mark.slow
@pytest.mark.parametrize("faulty", ["lm", "rm"])
def test_a_server_that_hangs(lm: TestServer, rm: TestServer, faulty: str) -> None:
    with serving_models({"remote": config_of(lm.url, rm.url, timeout_s=2.0)}) as running:
        server = {"lm": lm, "rm": rm}[faulty]
        server.faults = Faults(hangs=True)
        answer = ask(running)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "backend_timeout"
        wait_until(lambda: server.num_hanging == 0)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_what_was_accepted_before_a_failure(
    remote: RunningServer, rm: TestServer, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream has sent it, and it is counted in both cases. Nothing unscored is sent."""
    caplog.set_level(logging.INFO, "stars_engine.server.access")
    whole = ask(remote).json()["choices"][0]["text"]
    rm.faults = Faults(status=503, num_answers=1)
    answer = ask(remote, stream=stream)
    if stream:
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
        chunks = [json.loads(line) for line in lines if line.startswith("{")]
        sent = "".join(chunk["choices"][0]["text"] for chunk in chunks if "choices" in chunk)
        assert sent
        assert whole.startswith(sent)
        assert chunks[-1]["error"]["code"] == "backend_unavailable"
    else:
        assert answer.status_code == 503
        assert list(answer.json()) == ["error"]

    def last() -> dict[str, Any]:
        lines = [r.getMessage() for r in caplog.records if r.name.endswith("server.access")]
        return json.loads(lines[-1]) if len(lines) == 2 else {}

    wait_until(lambda: bool(last()))
    assert last()["finish_reasons"] == {"error": 1}
    assert last()["tokens"]["completion"] == 8
    assert last()["error"] == "backend_unavailable"


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("waits_for", ["lm", "rm"])
def test_a_client_that_disconnects_cancels_the_calls_of_servers(
    remote: RunningServer, lm: TestServer, rm: TestServer, waits_for: str, stream: bool
) -> None:
    server, path = {"lm": (lm, DRAFTS), "rm": (rm, REWARDS)}[waits_for]
    num_before = server.count(path)
    server.faults = Faults(hangs=True)
    body = json.dumps({**REQUEST, "stream": stream}).encode()
    engine = remote.model("remote").engine
    wait_until(lambda: idle(engine))  # an earlier test's calls have ended, too
    wait_until(lambda: server.num_running == server.num_hanging == 0)
    num_aborted, num_cancelled = server.num_aborted, engine.stats().num_cancelled
    with remote.send(body, PATH):
        wait_until(lambda: server.count(path) > num_before)
        assert server.num_aborted == num_aborted
    wait_until(lambda: idle(engine))
    wait_until(lambda: server.num_hanging == 0)
    wait_until(lambda: server.num_aborted - num_aborted == server.count(path) - num_before)
    wait_until(lambda: engine.stats().num_cancelled == num_cancelled + 1)
    server.faults = Faults()
    assert ask(remote).status_code == 200
