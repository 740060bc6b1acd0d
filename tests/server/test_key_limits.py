"""Limits of each API key: requests in progress, tokens per minute, and fairness that they give."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest

from stars_engine import EngineParams
from stars_engine.server.app import create_app
from stars_engine.server.errors import ApiError
from stars_engine.server.facts import RequestFacts
from stars_engine.server.key_limits import KeyLimits
from stars_engine.server.settings import ApiKeys, ServerParams
from tests.support.engines import idle, wait_until
from tests.support.held_rewards import HeldReward
from tests.support.servers import HELLO, random_chat, serving

CHAT = "/v1/chat/completions"
REQUEST = {"model": "chat", "messages": HELLO, "max_tokens": 8, "stars": {"min_tokens": 8}}
LARGE, SMALL = "sk-a-large-caller-0", "sk-a-small-caller-0"
KEYS = ApiKeys.read(f"{LARGE}\n{SMALL}", "test")


def headers_of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_requests_in_progress_of_one_key() -> None:
    held = HeldReward()
    configs = {"chat": random_chat(held)}
    with serving(configs, KEYS, max_requests_per_key=2) as running, running.http() as client:
        engine = running.model("chat").engine
        body = json.dumps(REQUEST).encode()
        started = [running.send(body, key=LARGE) for _ in range(2)]
        wait_until(lambda: engine.stats().num_active == 2)
        refused = client.post(CHAT, json=REQUEST, headers=headers_of(LARGE))
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "2 requests of this API key" in refused.json()["error"]["message"]
        other = running.send(body, key=SMALL)
        wait_until(lambda: engine.stats().num_active == 3)
        held.opened.set()
        for connection in (*started, other):
            with connection:
                assert connection.recv(15) == b"HTTP/1.1 200 OK"
        wait_until(lambda: idle(engine))
        assert client.post(CHAT, json=REQUEST, headers=headers_of(LARGE)).status_code == 200


async def test_a_request_does_not_count_any_more_when_its_end_is_sent() -> None:
    """A client that always has as many requests as it may is never refused."""
    app = create_app({"chat": random_chat()}, keys=KEYS)
    state = app.state.server
    counted: list[tuple[str, int]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        counted.append((message["type"], state.num_requests))

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "query_string": b""}
    await app({**scope, "headers": [(b"authorization", f"Bearer {LARGE}".encode())]}, receive, send)
    assert counted == [("http.response.start", 1), ("http.response.body", 0)]


@pytest.fixture
def limits() -> tuple[KeyLimits, list[float]]:
    now_s = [0.0]
    params = ServerParams(tokens_per_minute_per_key=600)
    return KeyLimits(params, lambda: now_s[0]), now_s


def test_tokens_per_minute(limits: tuple[KeyLimits, list[float]]) -> None:
    counted, now_s = limits

    def use(num_tokens: int, key: str | None = "a") -> None:
        facts = RequestFacts(key=key)
        with counted.count(facts):
            facts.tokens["drafted"] += num_tokens

    use(500)
    use(200)  # a request is counted when it has ended
    with pytest.raises(ApiError) as refused:
        use(1)
    assert refused.value.status == 429
    assert refused.value.headers == {"Retry-After": "11"}  # 100 tokens at 10 per second
    use(1000, key="b")
    use(10**6, key=None)
    use(10**6, key=None)  # requests without a key
    now_s[0] += 11
    use(1)
    now_s[0] += 3600
    use(600)  # unused tokens are not saved up
    with pytest.raises(ApiError):
        use(1)


def test_a_request_that_fails_is_counted(limits: tuple[KeyLimits, list[float]]) -> None:
    counted, _ = limits
    facts = RequestFacts(key="a", tokens=Counter(prompt=600))
    with pytest.raises(ZeroDivisionError), counted.count(facts):
        raise ZeroDivisionError
    with pytest.raises(ApiError), counted.count(facts):
        pass


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_of_answers_count(stream: bool) -> None:
    configs = {"chat": random_chat()}
    with serving(configs, KEYS, tokens_per_minute_per_key=24) as running, running.http() as client:
        body = {**REQUEST, "stream": stream}
        assert client.post(CHAT, json=body, headers=headers_of(LARGE)).status_code == 200

        def again() -> httpx.Response:
            return client.post(CHAT, json=body, headers=headers_of(LARGE))

        wait_until(lambda: again().status_code == 429)
        assert again().json()["error"]["code"] == "rate_limit_exceeded"
        assert client.post(CHAT, json=body, headers=headers_of(SMALL)).status_code == 200


def test_a_stream_that_is_left_counts() -> None:
    """A caller cannot avoid the limit by leaving before the end."""
    configs = {"chat": random_chat()}
    with serving(configs, KEYS, tokens_per_minute_per_key=1) as running, running.http() as client:
        body = json.dumps({**REQUEST, "max_tokens": 4000, "stream": True}).encode()
        with running.send(body, key=LARGE) as connection:
            received = b""
            while received.count(b"data: ") < 4:
                received += connection.recv(4096)
        wait_until(lambda: idle(running.model("chat").engine))
        wait_until(
            lambda: client.post(CHAT, json=REQUEST, headers=headers_of(LARGE)).status_code == 429
        )


@pytest.mark.slow
async def test_a_large_caller_does_not_hold_up_a_small_one() -> None:
    """Counted, not timed: how many answers of the large caller end before one of the small."""
    limit, num_large = 4, 64
    ended: list[str] = []
    is_full = asyncio.Event()
    turn = asyncio.Condition()
    config = random_chat(max_attempts=1).replace(engine=EngineParams(max_active=4))

    async def call(client: httpx.AsyncClient, key: str) -> None:
        while (await client.post(CHAT, json=REQUEST, headers=headers_of(key))).status_code == 429:
            is_full.set()
            async with turn:
                await turn.wait()  # until an answer has ended
        ended.append(key)
        async with turn:
            turn.notify()

    with serving({"chat": config}, KEYS, max_requests_per_key=limit) as running:
        limits = httpx.Limits(max_connections=num_large + 1)
        async with httpx.AsyncClient(base_url=running.url, timeout=60, limits=limits) as client:
            large = [asyncio.create_task(call(client, LARGE)) for _ in range(num_large)]
            await is_full.wait()
            waits = []
            for _ in range(3):
                before = ended.count(LARGE)
                await call(client, SMALL)
                waits.append(ended.count(LARGE) - before)
            await asyncio.gather(*large)
        assert ended.count(LARGE) == num_large
        # Few more than were in progress; without the limit, all of them come first.
        assert max(waits) <= 2 * limit
