"""Keys, limits, readiness, draining, cross-origin requests, logs and metrics."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from pathlib import Path

import httpx
import pytest

from stars_engine import ConfigError, EngineParams, StarsConfig
from stars_engine.engine.streams import AsyncSegmentStream
from stars_engine.runtime.request_group import RequestGroup
from stars_engine.server.calls import EngineRequest
from stars_engine.server.facts import RequestFacts
from stars_engine.server.settings import ApiKeys, ServerParams
from tests.support.engines import wait_until
from tests.support.held_rewards import HeldReward
from tests.support.servers import HELLO, RunningServer, random_chat, serving

CHAT = "/v1/chat/completions"
REQUEST = {"model": "chat", "messages": HELLO, "max_tokens": 8, "stars": {"min_tokens": 8}}
KEY = "sk-0123456789abcdef"


def error_of(answer: httpx.Response) -> dict[str, str]:
    return answer.json()["error"]


def test_keys() -> None:
    keys = ApiKeys.read(f"# of the tests\n{KEY}\n", "test")
    with serving({"chat": random_chat()}, keys) as running, running.http() as client:
        for path in ("/healthz", "/readyz"):
            assert client.get(path).status_code == 200, path
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert error_of(answer)["code"] == "invalid_api_key"
            assert client.post(CHAT, json=REQUEST, headers=headers).status_code == 401
        headers = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.post(CHAT, json=REQUEST, headers=headers).status_code == 200


def test_files_of_keys(tmp_path: Path) -> None:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    file = tmp_path / "keys"
    file.write_text(f"sha256:{digest}\nsk-another-key-of-16\n")
    keys = ApiKeys.from_file(file)
    assert keys.find(KEY) == digest[:8]
    assert keys.find("sk-another-key-of-16") is not None
    assert keys.find("sk-another-key-of-1") is None
    assert KEY not in repr(vars(keys))
    file.write_text(KEY, encoding="utf-8-sig")  # some editors begin a file with a mark
    assert ApiKeys.from_file(file).find(KEY) == digest[:8]
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="cannot be read: "):
            ApiKeys.from_file(path)
    for text, message in (("short", "at least 16"), ("sha256:12", "64 hex"), ("# no", "no key")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=message):
            ApiKeys.from_file(file)


def test_bodies_that_are_too_large() -> None:
    chat = {"chat": random_chat()}
    with serving(chat, max_body_bytes=2048) as running, running.http() as client:
        content = json.dumps({**REQUEST, "user": "x" * 3000}).encode()
        for body in (content, (content[i : i + 100] for i in range(0, len(content), 100))):
            answer = client.post(CHAT, content=body, headers={"content-type": "text/json"})
            assert answer.status_code == 413, answer.text
            assert error_of(answer)["code"] == "body_too_large"
        assert client.post(CHAT, json=REQUEST).status_code == 200


def test_too_many_requests_and_a_full_queue() -> None:
    held = HeldReward()
    config = random_chat(held).replace(engine=EngineParams(max_active=1, max_waiting=1))
    with serving({"chat": config}, max_requests=3) as running, running.http() as client:
        body = json.dumps(REQUEST).encode()
        engine = running.model("chat").engine
        first = running.send(body)
        assert held.asked.wait(60)
        second = running.send(body)
        wait_until(lambda: engine.stats().num_waiting == 1)
        full = client.post(CHAT, json=REQUEST)
        assert full.status_code == 429
        assert error_of(full)["message"] == "The queue is full. Hint: retry later"
        assert full.headers["retry-after"] == "1"
        running.server.state_of_app.num_requests += 1
        busy = client.post(CHAT, json=REQUEST)
        assert busy.status_code == 429
        assert "3 requests are in progress" in error_of(busy)["message"]
        assert client.get("/healthz").status_code == 200
        held.opened.set()
        for connection in (first, second):
            with connection:
                assert connection.recv(15) == b"HTTP/1.1 200 OK"


def test_a_reward_that_does_not_answer_in_time() -> None:
    held = HeldReward()
    with serving({"chat": random_chat(held, function={"timeout_s": 0.05})}) as running:
        with running.http() as client:
            answer = client.post(CHAT, json=REQUEST)
        held.opened.set()
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "reward_timeout"


def test_while_loading_and_when_loading_fails(tmp_path: Path) -> None:
    missing = StarsConfig(
        model=str(tmp_path), reward=lambda _, text: 1.0, align=random_chat().align
    )
    configs = {"chat": random_chat(), "broken": missing}
    with serving(configs, wait=False) as running, running.http() as client:
        models = running.server.state_of_app.models
        wait_until(lambda: all(model.state != "loading" for model in models))
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["models"] == {"chat": "ready", "broken": "failed"}
        answer = client.post(CHAT, json={**REQUEST, "model": "broken"})
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text
        assert client.post(CHAT, json=REQUEST).status_code == 200
        running.model("chat").align = None
        answer = client.post(CHAT, json=REQUEST)
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "model_loading"
        assert answer.headers["retry-after"]


def test_a_server_without_a_model_ends(tmp_path: Path) -> None:
    missing = StarsConfig(
        model=str(tmp_path), reward=lambda _, text: 1.0, align=random_chat().align
    )
    with serving({"broken": missing}, wait=False) as running:
        wait_until(lambda: running.server.should_exit)
        assert running.server.load_failed


def test_draining_lets_streams_end() -> None:
    held = HeldReward()
    with serving({"chat": random_chat(held)}, drain_s=60) as running:
        body = json.dumps({**REQUEST, "stream": True}).encode()
        with running.send(body) as stream, running.http() as client:
            assert client.get("/healthz").status_code == 200  # the connection stays open
            assert held.asked.wait(60)
            running.server.state_of_app.draining = True
            answer = client.post(CHAT, json=REQUEST)
            assert answer.status_code == 503
            assert error_of(answer)["code"] == "server_stopping"
            assert client.get("/readyz").json()["status"] == "stopping"
            running.server.should_exit = True
            held.opened.set()
            received = b""
            while part := stream.recv(4096):
                received += part
        assert b'"finish_reason": "length"' in received
        assert b"[DONE]" in received


def test_a_drain_that_takes_too_long_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    held = HeldReward()
    with serving({"chat": random_chat(held)}, drain_s=0) as running:
        with running.send(json.dumps({**REQUEST, "stream": True}).encode()) as stream:
            assert held.asked.wait(60)
            running.server.state_of_app.draining = True
            running.server.should_exit = True
            received = b""
            while part := stream.recv(4096):
                received += part
        held.opened.set()
    assert b"[DONE]" not in received
    assert b'"code": "server_stopping"' in received
    assert received.endswith(b"0\r\n\r\n")
    assert not [record for record in caplog.records if record.exc_info]


def test_keep_alive_comments_while_a_segment_is_scored() -> None:
    held = HeldReward()
    body = json.dumps({**REQUEST, "stream": True}).encode()
    chat = {"chat": random_chat(held)}
    with serving(chat, keep_alive_s=0.01) as running, running.send(body) as stream:
        received = b""
        while received.count(b": keep-alive\n\n") < 3:
            received += stream.recv(4096)
        assert b"200 OK" in received
        assert b'"role": "assistant"' in received
        held.opened.set()
        while not received.endswith(b"0\r\n\r\n"):
            received += stream.recv(4096)
    assert b"[DONE]" in received


def test_other_origins_need_permission() -> None:
    origin = "https://chat.example.org"
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    with serving({"chat": random_chat()}) as running, running.http() as client:
        assert "access-control-allow-origin" not in client.options(CHAT, headers=asked).headers
        assert "access-control-allow-origin" not in client.post(CHAT, json=REQUEST).headers
    keys = ApiKeys.read(KEY, "test")
    chat = {"chat": random_chat()}
    with serving(chat, keys, cors_origins=(origin,)) as running, running.http() as client:
        answer = client.options(CHAT, headers=asked)
        assert answer.headers["access-control-allow-origin"] == origin
        own = {"Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}
        answer = client.options(CHAT, headers={**asked, **own})  # OpenAI's client in a browser
        assert answer.status_code == 200
        other = client.options(CHAT, headers={**asked, "Origin": "https://other.org"})
        assert "access-control-allow-origin" not in other.headers
        answer = client.post(CHAT, json=REQUEST, headers={"Origin": origin})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == origin
        assert "retry-after" in answer.headers["access-control-expose-headers"]
    with pytest.raises(ConfigError, match="without a path"):
        ServerParams(cors_origins=["https://chat.example.org/"])


def test_pages_whose_own_name_leads_to_the_server_are_refused() -> None:
    chat = {"chat": random_chat()}

    def status(running: RunningServer, host: str) -> int:
        with running.http() as client:
            response = client.get("/v1/models", headers={"host": host})
        if response.status_code == 421:
            assert "Hint: address the server by one of them" in response.text
        return response.status_code

    with serving(chat) as running:
        assert [status(running, host) for host in ("localhost:80", "[::1]:9", "127.0.0.1")] == [
            200
        ] * 3
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::2]"):
            assert status(running, host) == 421
    with serving(chat, allowed_hosts=("chat.example.org",)) as running:
        assert status(running, "Chat.example.org") == 200
        assert status(running, "localhost") == 421
    with serving(chat, allowed_hosts=("*",)) as running:
        assert status(running, "evil.example") == 200
    with serving(chat, ApiKeys.read("a" * 20, "test")) as running:
        assert status(running, "evil.example") == 401  # no page has a key
    for wrong in ("http://a", "a:80", "", "A.example"):
        with pytest.raises(ConfigError, match="is not the name of a host"):
            ServerParams(allowed_hosts=[wrong])


@pytest.mark.slow
def test_the_access_log_has_no_texts(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stars_engine.server.access")
    secret = "a very private question"
    with server.http() as client:
        answer = client.post(
            f"{CHAT}?q={secret}",
            json={**REQUEST, "messages": [{"role": "user", "content": secret}], "user": secret},
        )
        client.get(f"/{secret}")
        client.post(CHAT, json={**REQUEST, "model": secret})

    def logged() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "stars_engine.server.access"]

    wait_until(lambda: len(logged()) == 3)  # a request is logged after its response
    lines = logged()
    assert not any(secret in line or "private" in line for line in lines)
    text = answer.json()["choices"][0]["message"]["content"]
    assert not any(json.dumps(text) in line for line in lines)
    entries = [json.loads(line) for line in lines]
    [entry] = [e for e in entries if e["id"] == answer.headers["x-request-id"]]
    assert entry["model"] == "chat"
    assert entry["status"] == 200
    assert entry["path"] == CHAT
    assert entry["tokens"]["completion"] == 8
    assert [e["path"] for e in entries if e["status"] == 404] == ["other", CHAT]


def test_metrics(server: RunningServer) -> None:
    with server.http() as client:
        before = client.get("/metrics").text
        client.post(CHAT, json=REQUEST)
        client.post(CHAT, json={**REQUEST, "stream": True})
        client.get("/no-such-path")
        wait_until(lambda: 'endpoint="other"' in client.get("/metrics").text)
        after = client.get("/metrics").text
    labels = f'{{endpoint="{CHAT}",model="chat",status="200"}}'
    assert value_of(after, f"stars_requests_total{labels}") == (
        value_of(before, f"stars_requests_total{labels}") + 2
    )
    tokens = 'stars_tokens_total{kind="completion",model="chat"}'
    assert value_of(after, tokens) == value_of(before, tokens) + 16
    assert value_of(after, 'stars_model_ready{model="embedded"}') == 1
    assert value_of(after, 'stars_engine_active{model="chat"}') == 0
    holder = 'stars_engine_memory_bytes{holder="model.kv_cache",model="chat"}'
    assert value_of(after, holder) > 0
    assert "stars_first_segment_seconds_bucket" in after
    assert "no-such-path" not in after


def value_of(text: str, name: str) -> float:
    values = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(values[0]) if values else 0.0


@pytest.mark.slow
def test_nothing_of_a_request_stays_in_memory(server: RunningServer) -> None:
    """Streams, whole answers, errors and disconnects leave no object behind."""
    kinds = (RequestFacts, EngineRequest, RequestGroup, AsyncSegmentStream)

    def alive() -> list[object]:
        gc.collect()
        return [found for found in gc.get_objects() if isinstance(found, kinds)]

    before = alive()  # of other tests in this process; held, so that no identity is used again
    known = {id(found) for found in before}
    body = json.dumps({**REQUEST, "stream": True, "max_tokens": 200}).encode()
    with server.http() as client:
        for _ in range(5):
            client.post(CHAT, json=REQUEST)
            client.post(CHAT, json={**REQUEST, "stream": True})
            client.post(CHAT, json={**REQUEST, "max_tokens": 10**6})
            client.post("/v1/responses", json={"model": "chat", "input": "Hi"})
            client.post("/v1/score", json={"model": "chat", "messages": HELLO, "input": "a"})
            with server.send(body) as connection:
                connection.recv(1)

    # The last request of a connection, and the last group of an engine, may still be referred to.
    wait_until(lambda: sum(id(found) not in known for found in alive()) <= 6)
