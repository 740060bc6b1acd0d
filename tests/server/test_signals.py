"""What signals do: requests end, a second signal cuts them off, and nothing waits for loading."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from stars_engine.engine import handle
from stars_engine.server import run
from tests.support.engines import wait_until
from tests.support.held_rewards import HeldReward
from tests.support.server_commands import address, command
from tests.support.servers import HELLO, random_chat, serving

BODY = {"model": "chat", "messages": HELLO, "max_tokens": 8, "stream": True}
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_cuts_requests_off(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_REPEAT_S", 0.0)
    held = HeldReward()
    with serving({"chat": random_chat(held)}, drain_s=60) as running:
        server = running.server
        with running.send(json.dumps(BODY).encode()) as stream:
            assert held.asked.wait(60)
            server.handle_exit(number, None)
            assert server.state_of_app.draining
            assert server.cut_off_by is None
            server.handle_exit(number, None)
            received = b"".join(iter(lambda: stream.recv(4096), b""))
        held.opened.set()
    assert server.cut_off_by == number
    assert b'"code": "server_stopping"' in received
    assert b"[DONE]" not in received


def test_a_signal_that_comes_twice_at_once_is_one() -> None:
    """`timeout` signals a process, and then its group."""
    with serving({"chat": random_chat()}) as running:
        for _ in range(2):
            running.server.handle_exit(signal.SIGTERM, None)
        assert running.server.cut_off_by is None


def test_the_end_does_not_wait_for_models_that_are_loading(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_loading, may_load = threading.Event(), threading.Event()

    def load(config: object) -> object:
        is_loading.set()
        assert may_load.wait(60)
        raise ValueError("too late")

    monkeypatch.setattr(handle, "_load_model", load)
    with serving({"chat": random_chat()}, wait=False) as running:
        assert is_loading.wait(60)
        running.server.handle_exit(signal.SIGTERM, None)
    assert not may_load.is_set()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    may_load.set()


@pytest.mark.slow
def test_a_stream_ends_after_sigterm_and_the_command_with_success() -> None:
    received: list[str] = []
    with command() as process, httpx.Client(base_url=address(process), timeout=60) as client:
        assert process.stderr is not None
        threading.Thread(target=process.stderr.read, daemon=True).start()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        body = {"model": "embedded", "prompt": "This movie", "max_tokens": 200, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line and not received:
                    process.send_signal(signal.SIGTERM)
                received.append(line)
        out, _ = process.communicate(timeout=60)
    assert "data: [DONE]" in received
    assert process.returncode == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert lines[-1]["path"] == "/v1/completions"
    assert lines[-1]["completed"]


SLOW_TEARDOWN = """
import sys, time
from stars_engine.cli.interrupts import end_soon

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(600)

slow = Slow()
end_soon(2)
print("written", end="")
sys.exit(130)
"""


def test_the_end_does_not_wait_for_the_teardown_of_modules() -> None:
    """In which no other thread runs Python."""
    done = subprocess.run(
        [sys.executable, "-c", SLOW_TEARDOWN], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (130, b"written")


HELD = """
import time

def reward(prompt, completion):
    open({asked!r}, "w").close()
    time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_command_at_once(number: int, tmp_path: Path) -> None:
    """Although a reward does not return."""
    asked = tmp_path / "asked"
    os.mkfifo(asked)
    (tmp_path / "held.py").write_text(HELD.format(asked=str(asked)))
    (tmp_path / "a.yaml").write_text(
        "model: stars:embedded-lm\nreward: held:reward\n"
        "align: {schedule: {kind: constant, value: 0.0}}\n"
    )
    body = {"model": "a", "prompt": "This movie", "max_tokens": 8, "stream": True}
    with command("--config", "a.yaml", cwd=tmp_path) as process:
        url = address(process)
        with httpx.Client(base_url=url, timeout=60) as client:
            wait_until(lambda: client.get("/readyz").status_code == 200)
            with client.stream("POST", "/v1/completions", json=body) as answer:
                with asked.open():
                    process.send_signal(number)
                assert process.stderr is not None
                said = next(line for line in process.stderr if "Stopping" in line)
                time.sleep(2 * run._REPEAT_S)
                process.send_signal(number)
                lines = [*answer.iter_lines()]
        assert process.wait(10) == 128 + number
        assert "Traceback" not in process.stderr.read()
    assert "Requests in progress: 1" in said
    assert any("server_stopping" in line for line in lines)
