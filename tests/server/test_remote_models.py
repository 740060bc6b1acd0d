"""The server over models behind other servers: readiness, failures, partial answers, disconnects."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
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


@pytest.fixture
def lm(engine: StarsEngine) -> Iterator[TestServer]:
    with serving(Served(engine.model, codec=engine.model.codec)) as running:
        yield running


@pytest.fixture
def rm(engine: StarsEngine) -> Iterator[TestServer]:
    scores = classifier_scores(engine.reward._model)
    served = Served(rewards=scores, codec=engine.reward._codec, max_model_len=384)
    with serving(served) as running:
        yield running


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
def remote(lm: TestServer, rm: TestServer) -> Iterator[RunningServer]:
    with serving_models({"remote": config_of(lm.url, rm.url)}, keep_alive_s=0.02) as running:
        yield running


@pytest.fixture(autouse=True)
def checked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_models, "_CHECKED_S", 0.0)


def state_of(client: httpx.Client) -> tuple[int, str]:
    answer = client.get("/readyz")
    return answer.status_code, answer.json()["models"]["remote"]


def ask(running: RunningServer, **more: Any) -> httpx.Response:
    with running.http() as client:
        return client.post(PATH, json={**REQUEST, **more})


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


@pytest.mark.parametrize("gone", ["lm", "rm"])
def test_readiness_follows_the_servers(
    remote: RunningServer,
    lm: TestServer,
    rm: TestServer,
    gone: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with remote.http() as client:
        assert state_of(client) == (200, "ready")
        server = {"lm": lm, "rm": rm}[gone]
        server.kill()
        wait_until(lambda: state_of(client) == (503, "unavailable"))
        assert 'stars_model_ready{model="remote"} 0.0' in client.get("/metrics").text
        assert client.get("/v1/models").json()["data"][0]["stars"] == {"state": "unavailable"}
        assert server.url not in client.get("/readyz").text
        assert f"{server.url} does not answer" in caplog.text
        answer = client.post(PATH, json=REQUEST)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "backend_unavailable"
        assert answer.headers["retry-after"]
        with serving(server.served, int(server.url.rpartition(":")[2])):
            wait_until(lambda: state_of(client) == (200, "ready"))
            assert client.post(PATH, json=REQUEST).status_code == 200


def test_a_model_whose_server_starts_later(
    lm: TestServer, rm: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_models, "_RETRY_S", 0.01)
    lm.kill()
    configs = {"remote": config_of(lm.url, rm.url)}
    with serving_models(configs, wait=False) as running, running.http() as client:
        assert state_of(client) == (503, "loading")
        assert ask(running).json()["error"]["code"] == "model_loading"
        with serving(lm.served, int(lm.url.rpartition(":")[2])):
            wait_until(lambda: state_of(client) == (200, "ready"))
            assert ask(running).status_code == 200


@pytest.mark.parametrize("faulty", ["lm", "rm"])
@pytest.mark.parametrize(
    ("faults", "status", "code"),
    [
        (Faults(status=500), 503, "backend_unavailable"),
        (Faults(status=429), 503, "backend_unavailable"),
        (Faults(cuts=True), 503, "backend_unavailable"),
        (Faults(status=504), 504, "backend_timeout"),
        (Faults(status=400), 502, "backend_failed"),
        (Faults(malformed=True), 502, "backend_failed"),
    ],
    ids=["500", "429", "cut", "504", "400", "malformed"],
)
def test_failures_of_servers(
    remote: RunningServer,
    lm: TestServer,
    rm: TestServer,
    faulty: str,
    faults: Faults,
    status: int,
    code: str,
) -> None:
    server, what = {"lm": (lm, "language model"), "rm": (rm, "reward model")}[faulty]
    server.faults = faults
    answer = ask(remote)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert f"The {what}'s server" in error["message"]
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "planted" not in answer.text  # what servers say may contain a part of the prompt
    assert server.url not in answer.text
    stream = ask(remote, stream=True).text
    assert f'"code": "{code}"' in stream
    assert "[DONE]" not in stream


def test_a_server_that_hangs(lm: TestServer, rm: TestServer) -> None:
    with serving_models({"remote": config_of(lm.url, rm.url, timeout_s=1.0)}) as running:
        lm.faults = Faults(hangs=True)
        answer = ask(running)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "backend_timeout"


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


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("waits_for", ["lm", "rm"])
def test_a_client_that_disconnects_cancels_the_calls_of_servers(
    remote: RunningServer, lm: TestServer, rm: TestServer, waits_for: str, stream: bool
) -> None:
    server, path = {"lm": (lm, DRAFTS), "rm": (rm, REWARDS)}[waits_for]
    num_before = server.count(path)
    server.faults = Faults(hangs=True)
    body = json.dumps({**REQUEST, "stream": stream}).encode()
    with remote.send(body, PATH):
        wait_until(lambda: server.count(path) > num_before)
        assert server.num_aborted == 0
    wait_until(lambda: server.num_aborted == server.count(path) - num_before)
    engine = remote.model("remote").engine
    wait_until(lambda: idle(engine))
    assert engine.stats().num_cancelled == 1
    server.faults = Faults()
    assert ask(remote).status_code == 200
