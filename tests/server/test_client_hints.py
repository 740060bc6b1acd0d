"""Errors tell clients what they can do in JSON, and not in Python."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.servers import HELLO, RunningServer

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "no JSON"}}


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        (
            {"stop": "\ud800"},
            "stop",
            "contains a lone surrogate, which is not a character. Hint: remove it",
        ),
        ({"stars": {"reward_prompt": "\ud800"}}, "stars.reward_prompt", "Hint: remove it"),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            "messages",
            "Hint: remove it",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [CALL]}]},
            "messages[1]",
            "Hint: give a JSON object",
        ),
        (
            {"stars": {"chat_template_kwargs": {"tokenize": True}}},
            "stars.chat_template_kwargs",
            "Hint: leave it out",
        ),
        (
            {"stars": {"continue_final_message": True}},
            "stars.continue_final_message",
            "the last message has role 'user'. Hint: end with a message of role 'assistant'",
        ),
    ],
)
def test_hints_are_for_clients_in_any_language(
    server: RunningServer, change: dict[str, Any], param: str, message: str
) -> None:
    with server.http() as client:
        # Other clients send half a surrogate pair as an escape, too.
        content = json.dumps({"model": "chat", "messages": HELLO, **change})
        headers = {"content-type": "application/json"}
        answer = client.post("/v1/chat/completions", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    for python in ("encode(", "codec", "Chat,", "TransformersModel", "a dict", "None"):
        assert python not in error["message"]


def test_a_responses_request_names_its_own_field(server: RunningServer) -> None:
    body = {"model": "chat", "input": "Hi", "stars": {"continue_final_message": True}}
    with server.http() as client:
        error = client.post("/v1/responses", json=body).json()["error"]
    assert error["param"] == "stars.continue_final_message"
