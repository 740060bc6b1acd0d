"""No character that was not accepted leaves the process: streams are read byte by byte."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from stars_engine import ConstantSchedule
from tests.support.engines import idle, wait_until
from tests.support.servers import HELLO, RunningServer, random_chat, serving

# Characters that the server itself never writes in a stream.
MARKS = re.compile(r"[~^|<>@`$%&*#!?;=+]")
END = b"data: [DONE]"


class NoMarks:
    """A reward that vetoes every text with one of the marks, and remembers all texts."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.seen: list[str] = []
        self._fail_after = fail_after

    def __call__(self, prompt: str, completion: str) -> float:
        self.seen.append(completion)
        if self._fail_after is not None and len(self.seen) > self._fail_after:
            raise ValueError(f"cannot score this: {completion} !!!")
        return -1.0 if MARKS.search(completion) else 1.0


def body(path: str, **more: Any) -> bytes:
    prompt: dict[str, Any] = {"messages": HELLO}
    if path == "/v1/completions":
        prompt = {"prompt": "hello"}
    if path == "/v1/responses":
        prompt = {"input": "hello"}
    options = {"min_tokens": 24, **more.pop("stars", {})}
    seed = {} if path == "/v1/responses" else {"seed": 1}
    return json.dumps(
        {"model": "chat", "stream": True, "stars": options, **prompt, **seed, **more}
    ).encode()


def read(running: RunningServer, path: str, **more: Any) -> bytes:
    """Read a stream byte by byte, checking at each byte that nothing vetoed was sent."""
    received = bytearray()
    with running.send(body(path, **more), path) as connection:
        while not received.endswith(b"\r\n\r\n"):
            received += connection.recv(1)  # the headers
        while byte := connection.recv(1):
            received += byte
            assert not MARKS.search(byte.decode("latin-1")), received[-200:]
            if received.endswith(b"\r\n0\r\n\r\n"):
                break
    return bytes(received)


def vetoing(reward: Any, **align: Any) -> dict[str, Any]:
    settings = {"schedule": ConstantSchedule(value=0.0), "max_attempts": 100, **align}
    return {
        "chat": random_chat(
            reward, function={"floor": 0.0, "max_concurrency": 1}, num_candidates=4, **settings
        )
    }


PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]


@pytest.fixture(scope="module")
def vetoed() -> Any:
    reward = NoMarks()
    with serving(vetoing(reward), keep_alive_s=0.02) as running:
        yield running, reward


@pytest.mark.parametrize("path", PATHS)
def test_no_vetoed_character_is_sent(vetoed: tuple[RunningServer, NoMarks], path: str) -> None:
    running, reward = vetoed
    before = len(reward.seen)
    received = read(running, path, stars={"segments": True})
    scored = reward.seen[before:]
    assert any(map(MARKS.search, scored))  # some drafts were vetoed
    deltas = re.findall(rb'"(?:content|text|delta)": "((?:[^"\\]|\\.)+)"', received)
    assert deltas
    assert b"200 OK" in received.splitlines()[0]


@pytest.mark.parametrize("on_exhausted", ["stop", "best", "raise"])
def test_a_stream_that_is_refused_ends_without_the_rejected_text(on_exhausted: str) -> None:
    """With few attempts most answers end early; a vetoed draft is never forced."""
    reward = NoMarks()
    with serving(vetoing(reward, max_attempts=2, on_exhausted=on_exhausted)) as running:
        streams = [
            read(running, "/v1/chat/completions", seed=seed, max_tokens=40) for seed in range(4)
        ]
        refused = [stream for stream in streams if b'"content_filter"' in stream]
        seed = streams.index(refused[0])
        with running.http() as client:
            answer = client.post(
                "/v1/chat/completions",
                json=json.loads(
                    body("/v1/chat/completions", seed=seed, max_tokens=40, stream=False)
                ),
            )
    if on_exhausted == "raise":
        assert all(b'"error"' in stream and END not in stream for stream in refused)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "content_filter"
    else:
        assert all(b'"refusal": "' in stream for stream in refused)
    assert not MARKS.search(answer.text)


@pytest.mark.parametrize("path", PATHS)
def test_errors_do_not_quote_drafts(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A reward fails in the middle; the log has its error, and the client does not."""
    reward = NoMarks(fail_after=3)
    with serving(vetoing(reward)) as running:
        received = read(running, path)
    assert b"cannot" not in received
    assert b"reward model failed" in received
    assert END not in received
    assert "cannot score this" in caplog.text


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_disconnects_frees_its_request(
    vetoed: tuple[RunningServer, NoMarks], path: str
) -> None:
    """At whatever byte the client leaves, its request ends and nothing vetoed was sent."""
    running, _ = vetoed
    model = running.model("chat")
    engine = model.raw_engine if path == "/v1/completions" else model.engine
    before = engine.stats()
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    for num_bytes in (1, 300, 900, 2400):
        received = b""
        with running.send(body(path, **{limit: 4000}), path) as connection:
            while len(received) < num_bytes:
                received += connection.recv(1)
        sent = received.partition(b"\r\n\r\n")[2]
        assert not MARKS.search(sent.decode("latin-1"))
        wait_until(lambda: idle(engine))
    wait_until(lambda: engine.stats().num_cancelled == before.num_cancelled + 4)
    assert engine.stats().num_finished == before.num_finished


@pytest.mark.parametrize("path", PATHS)
def test_whole_answers_have_accepted_text_only(
    vetoed: tuple[RunningServer, NoMarks], path: str
) -> None:
    running, reward = vetoed
    before = len(reward.seen)
    with running.http() as client:
        asked = json.loads(body(path, stream=False, stars={"segments": True}))
        answer = client.post(path, json=asked)
    assert answer.status_code == 200
    assert any(map(MARKS.search, reward.seen[before:]))
    assert not MARKS.search(answer.text)


def test_streams_of_several_answers_have_accepted_text_only(
    vetoed: tuple[RunningServer, NoMarks],
) -> None:
    """Interleaved answers to several prompts."""
    running, _ = vetoed
    received = read(running, "/v1/completions", prompt=["a", "b"], n=2, stars={"segments": True})
    assert {b'"index": %d' % index for index in range(4)} <= set(
        re.findall(rb'"index": \d', received)
    )


DAYS = {"type": "integer", "minimum": 1000, "maximum": 99999}
TOOL = {
    "name": "t",
    "parameters": {"type": "object", "properties": {"days": DAYS}, "required": ["days"]},
}
TOOLS = {
    "/v1/chat/completions": [{"type": "function", "function": TOOL}],
    "/v1/responses": [{"type": "function", **TOOL}],
}


@pytest.fixture(scope="module")
def vetoed_calls() -> Iterator[tuple[RunningServer, list[str]]]:
    """A reward that vetoes calls with certain digits; all calls are judged."""
    seen: list[str] = []

    def no_seven(prompt: str, completion: str) -> float:
        seen.append(completion)
        return -1.0 if "7" in completion else 1.0

    configs = vetoing(no_seven, judge="all", on_exhausted="stop")
    with serving(configs, keep_alive_s=0.02) as running:
        yield running, seen


@pytest.mark.slow
@pytest.mark.parametrize("path", [*TOOLS])
def test_vetoed_calls_are_not_sent(
    vetoed_calls: tuple[RunningServer, list[str]], path: str
) -> None:
    """Arguments of calls, and names of tools, come from accepted segments as texts do."""
    running, seen = vetoed_calls
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    asked = {"tools": TOOLS[path], "tool_choice": "required", limit: 200}
    called = []
    for seed in range(4):
        if path != "/v1/responses":
            asked["seed"] = seed
        with running.http() as client:
            answer = client.post(path, json={**json.loads(body(path, **asked)), "stars": {}})
        written = re.findall(
            r'"(?:arguments|delta|content|text)": "((?:[^"\\]|\\.)*)"', answer.text
        )
        assert not any("7" in text for text in written), written
        called += [text for text in written if "days" in text]
    assert called
    assert any("7" in text for text in seen)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_refused_answers_do_not_quote_drafts(
    vetoed_at_once: RunningServer, path: str, stream: bool
) -> None:
    """Every draft is vetoed: the answer is empty but for the reason of the refusal."""
    with vetoed_at_once.http() as client:
        asked = json.loads(body(path, stream=stream, stars={"segments": True}))
        answer = client.post(path, json=asked)
    assert answer.status_code == 200
    assert "drafts of the next segment was accepted" in answer.text or path == "/v1/completions"
    texts = re.findall(r'"(?:content|text|delta)": ?"((?:[^"\\]|\\.)*)"', answer.text)
    assert not any(text for text in texts if not text.startswith("None of"))
    assert '"abandoned_attempts"' in answer.text
    assert len(re.findall('"verdict": ?"rejected"', answer.text)) == 2


@pytest.fixture(scope="module")
def vetoed_at_once() -> Iterator[RunningServer]:
    configs = vetoing(lambda _, completion: -1.0, max_attempts=2, on_exhausted="stop")
    with serving(configs) as running:
        yield running


def test_scores_do_not_quote_texts_in_errors(caplog: pytest.LogCaptureFixture) -> None:
    with serving(vetoing(NoMarks(fail_after=0))) as running, running.http() as client:
        asked = {"model": "chat", "messages": HELLO, "input": "secret"}
        answer = client.post("/v1/score", json=asked)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "cannot score this: secret" in caplog.text


def test_whole_answers_are_cancelled_too() -> None:
    release = threading.Event()
    asked = threading.Event()

    def reward(prompt: str, completion: str) -> float:
        asked.set()
        release.wait(60)
        return 1.0

    with serving({"chat": random_chat(reward)}) as running:
        engine = running.model("chat").engine
        request = json.dumps({"model": "chat", "messages": HELLO}).encode()
        with running.send(request):
            assert asked.wait(60)
            assert not idle(engine)
        wait_until(lambda: idle(engine))
        assert engine.stats().num_cancelled == 1
        release.set()


def test_rejected_text_needs_permission() -> None:
    reward = NoMarks()
    request = {
        "model": "chat",
        "messages": HELLO,
        "seed": 1,
        "stars": {"segments": True, "rejected_text": True},
    }
    configs = vetoing(reward)
    with serving(configs) as running, running.http() as client:
        answer = client.post("/v1/chat/completions", json=request)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "stars.rejected_text"
    with serving(configs, show_rejected=True) as running, running.http() as client:
        choices = client.post("/v1/chat/completions", json=request).json()["choices"]
    attempts = [a for s in choices[0]["stars"]["segments"] for a in s["attempts"]]
    rejected = [a for a in attempts if a["verdict"] == "rejected"]
    assert rejected
    assert all(MARKS.search(a["text"]) for a in rejected)
