"""Fields of requests: each of OpenAI's is served or refused by name, and errors name the field."""

from __future__ import annotations

import json
from typing import Any, get_type_hints

import httpx
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from stars_engine import JsonGrammar
from stars_engine.server.calls import sampled
from stars_engine.server.requests import ChatBody, CompletionBody, GenerationBody
from stars_engine.server.responses.bodies import ResponsesBody
from tests.support.servers import HELLO, RunningServer, random_chat, serving

CHAT = "/v1/chat/completions"
REQUEST = {"model": "chat", "messages": HELLO, "max_tokens": 4}
TOOL = {"type": "function", "function": {"name": "a"}}
NAMED = {"type": "function", "function": {"name": "b"}}
OBJECT = {"type": "json_object"}


def schema_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def with_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", "parameters": schema}}


def nested(depth: int) -> list[Any]:
    """Return lists within lists."""
    found: list[Any] = []
    for _ in range(depth - 1):
        found = [found]
    return found


def called_with(value: Any) -> dict[str, Any]:
    function = {"name": "a", "arguments": json.dumps({"x": value})}
    call = {"id": "1", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


CALL = {"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("params", "body"),
    [
        (chat_create_params.CompletionCreateParamsBase, ChatBody),
        (completion_create_params.CompletionCreateParamsBase, CompletionBody),
        (response_create_params.ResponseCreateParamsBase, ResponsesBody),
    ],
)
def test_every_field_of_openai_is_served_or_refused(
    params: Any, body: type[GenerationBody]
) -> None:
    fields = set(params.__annotations__) | {"stream"}
    served = set(body.model_fields)
    assert fields <= served | set(body.unsupported)
    assert not served & set(body.unsupported)
    assert set(body.unsupported) <= fields, "these are no fields of OpenAI's API"
    assert set(body.neutral) <= set(body.unsupported)
    assert served - fields - {"user", "metadata"} <= {"stars", "safety_identifier", *fields} | {
        "prompt_cache_key",
        "service_tier",
    }


def post(server: RunningServer, body: Any, path: str = CHAT) -> httpx.Response:
    with server.http() as client:
        return client.post(path, json=body)


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"logprobs": True}, "logprobs", "'logprobs' is not supported by this server. Hint: "),
        ({"functions": []}, "functions", "use tools"),
        ({"wether": 1}, "wether", "Unknown field 'wether'"),
        ({"stars": {"wether": 1}}, "stars.wether", "Unknown field 'wether'"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "x", "content": "a"}]}, "messages[0].role", "'developer'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "needs a content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "'text' or 'refusal'",
        ),
        ({"temperature": "0.5"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"max_completion_tokens": 4}, "max_tokens", "one setting"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"n": 1000}, "n", "less than or equal to 128"),
        ({"stop": [""]}, "stop", "at least one character"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed with stream"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "'function'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [TOOL], "tool_choice": NAMED}, "tool_choice", "the tools are: 'a'"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice.type", "'custom'"),
        ({"tools": [TOOL], "response_format": OBJECT}, "response_format", "and tools both"),
        ({"top_k": 5}, "top_k", "send it as stars.top_k"),
        ({"messages": [*HELLO, {**CALLED, "role": "user"}]}, "messages[1]", "needs the role"),
        ({"messages": [{**HELLO[0], "audio": {}}]}, "messages[0].audio", "is not supported"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "json_schema is missing",
        ),
        ({"response_format": schema_of({"$ref": "#/x"})}, "response_format", "does not refer"),
        ({"tools": [with_schema({"type": "x"})]}, "tools[0].function.parameters", "an object"),
        ({"tools": [with_schema({"enum": []})]}, "tools", "no value satisfies"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content", "valid string"),
        ({"stop": {}}, "stop", "valid string"),
        ({"stars": {"chat_template_kwargs": {"tools": 1}}}, "stars.chat_template_kwargs", ""),
        (
            {"stars": {"grammar": {"kind": "regex", "pattern": "("}}},
            "stars.grammar",
            "invalid regex",
        ),
        ({"stars": {"beta": 0.5}}, "stars.beta", "--client-align"),
        ({"stars": {"threshold": 0.0}}, "stars.threshold", "--client-align"),
        ({"temperature": 5e-324}, None, "no token to draw"),
        ({"max_tokens": 10**6}, "messages", "set max_tokens to at most"),
        ({"tools": [TOOL, TOOL]}, "tools", "tools: [{'type'"),
        ({"stars": {"chat_template_kwargs": {"a": nested(500)}}}, None, "more than 128 levels"),
        ({"messages": [*HELLO, called_with(nested(500))]}, "messages[1]", "200 levels deep"),
    ],
)
def test_errors_name_the_field(
    server: RunningServer, change: dict[str, Any], param: str | None, message: str
) -> None:
    answer = post(server, {**REQUEST, **change})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param or param is None
    assert message in error["message"]
    assert "Chat(" not in error["message"]  # these hints are for Python
    assert "on_overflow" not in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        (
            {"text": {"format": {"type": "json_schema", "schema": {}}}},
            "text.format",
            "needs a name",
        ),
        ({"input": []}, "input", "at least 1 item"),
        ({"seed": 1}, "seed", "Unknown field 'seed'. Hint: "),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "input[0].content[0].type is 'input_image'; expected 'input_text', 'output_text', ",
        ),
        ({"max_output_tokens": 10**6}, "input", "shorten the prompt"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "is not supported by this server"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "'item_reference'"),
        (
            {"input": [{"type": "function_call", "call_id": "", "name": "a", "arguments": "x"}]},
            "input[0]",
            "not valid JSON",
        ),
    ],
)
def test_errors_of_responses_name_the_field(
    server: RunningServer, change: dict[str, Any], param: str, message: str
) -> None:
    answer = post(server, {"model": "chat", "input": "Hi", **change}, "/v1/responses")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]


def test_the_deepest_tools_that_are_allowed_are_served(server: RunningServer) -> None:
    """The answer repeats them."""
    for depth, status in ((125, 200), (126, 400)):
        tool = {
            "type": "function",
            "name": "a",
            "parameters": {"type": "object", "x-a": nested(depth)},
        }
        body = {"model": "chat", "input": "Hi", "max_output_tokens": 4, "tools": [tool]}
        body["tool_choice"] = "none"
        answer = post(server, body, "/v1/responses")
        assert answer.status_code == status, answer.text


def test_a_request_for_more_answers_than_the_queue_takes(server: RunningServer) -> None:
    body = {"model": "embedded", "prompt": ["a"] * 9, "n": 128, "max_tokens": 1}
    for stream in (True, False):
        answer = post(server, {**body, "stream": stream}, "/v1/completions")
        assert answer.status_code == 400
        assert "asks for 1152 answers; allowed: 1024" in answer.json()["error"]["message"]


def test_integers_may_have_a_decimal_point(server: RunningServer) -> None:
    """As in JSON, and as the description of the API says."""
    assert post(server, {**REQUEST, "max_tokens": 4.0, "seed": 1.0}).status_code == 200
    assert post(server, {**REQUEST, "max_tokens": 4.5}).status_code == 400
    limits = ChatBody.model_json_schema()["properties"]["n"]
    assert (limits["minimum"], limits["maximum"]) == (1, 128)


def test_values_that_ask_for_nothing_are_accepted(server: RunningServer) -> None:
    nothing = {
        "logprobs": False,
        "top_logprobs": None,
        "tools": None,
        "store": False,
        "modalities": ["text"],
        "audio": None,
        "seed": None,
        "stop": None,
        "user": "me",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "reasoning_effort": None,
    }
    assert post(server, {**REQUEST, **nothing}).status_code == 200
    body = {"model": "embedded", "prompt": "A", "max_tokens": 4, "best_of": 1, "echo": False}
    assert post(server, {**body, "suffix": None}, "/v1/completions").status_code == 200


BIG = b'{"seed": ' + b"9" * 5000 + b"}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 10**5, BIG])
def test_bodies_that_are_no_json_objects(server: RunningServer, content: bytes) -> None:
    with server.http() as client:
        answer = client.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_json"
    assert "Hint: " in error["message"]


def test_text_that_is_no_text(server: RunningServer) -> None:
    """Half a surrogate pair and deep nesting are errors of the client, not of the server."""
    half = json.dumps({**REQUEST, "messages": [{"role": "user", "content": "\ud800"}]})
    named = json.dumps({**REQUEST, "model": "\ud800"})
    rewarded = json.dumps({**REQUEST, "stars": {"reward_prompt": "\ud800"}})
    deep = '{"model": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with server.http() as client:
        for content, status in ((half, 400), (named, 404), (deep, 400)):
            headers = {"content-type": "application/json"}
            answer = client.post(CHAT, content=content, headers=headers)
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["message"]
        answer = client.post(CHAT, content=rewarded, headers=headers)
        assert answer.json()["error"]["param"] == "stars.reward_prompt"


def test_long_names_are_not_quoted_whole(server: RunningServer) -> None:
    for change in ({"model": "m" * 10**5}, {"f" * 10**5: 1}, {"messages": [{"x" * 10**5: 1}]}):
        assert len(post(server, {**REQUEST, **change}).content) < 1000


def test_the_last_of_two_equal_fields_counts(server: RunningServer) -> None:
    body = json.dumps({**REQUEST, "model": "no"})[:-1] + ', "model": "chat"}'
    with server.http() as client:
        headers = {"content-type": "application/json"}
        assert client.post(CHAT, content=body, headers=headers).status_code == 200


def test_unknown_paths_and_methods(server: RunningServer) -> None:
    with server.http() as client:
        for path in ("/", "/healthz", "/v1/models", "/metrics"):
            head, whole = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == whole.headers["content-type"]
        assert client.head(CHAT).status_code == 405
        assert client.put("/v1/models").headers["allow"] == "GET, HEAD"
        assert client.get("/v1/embeddings").json()["error"]["code"] == "not_found"
        answer = client.get(CHAT)
        assert answer.status_code == 405
        assert answer.json()["error"]["code"] == "method_not_allowed"


def test_settings_of_requests_become_those_of_the_engine() -> None:
    body = ChatBody.model_validate(
        {
            **REQUEST,
            "temperature": 0.5,
            "top_p": 0.9,
            "frequency_penalty": 1,
            "presence_penalty": -1.0,
            "logit_bias": {"7": -100},
            "n": 2,
            "seed": 3,
            "stop": ["a", "b"],
            "stars": {
                "top_k": 0,
                "min_p": 0.1,
                "repetition_penalty": 1.1,
                "min_tokens": 2,
                "grammar": {"kind": "json"},
            },
        }
    )
    assert sampled(body) == {
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 1.0,
        "presence_penalty": -1.0,
        "logit_bias": {7: -100.0},
        "max_tokens": 4,
        "n": 2,
        "seed": 3,
        "stop": ["a", "b"],
        "top_k": None,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "grammar": JsonGrammar(),
    }


@pytest.mark.slow
def test_clients_may_change_the_acceptance_test_if_allowed() -> None:
    configs = {"chat": random_chat(max_drafted_tokens=1000)}
    with serving(configs, client_align=True) as running:
        stars = {"threshold": 5.0, "beta": 0.5, "max_attempts": 3, "on_exhausted": "stop"}
        answer = post(running, {**REQUEST, "stars": {**stars, "segments": True}})
        assert answer.status_code == 200
        [choice] = answer.json()["choices"]
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"]["refusal"] == "None of 3 drafts of the next segment was accepted."
        assert choice["stars"]["finish_reason"] == "rejected"
        assert [a["threshold"] for a in choice["stars"]["abandoned_attempts"]] == [5.0] * 3
        budget = {**stars, "on_exhausted": "best", "max_drafted_tokens": 10**6, "max_attempts": 999}
        answer = post(running, {**REQUEST, "max_tokens": 400, "stars": budget})
        details = answer.json()["usage"]["completion_tokens_details"]
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert details["drafted_tokens"] <= 1000  # the limit of the server holds


def test_fallback_text_is_a_refusal() -> None:
    align = {"max_attempts": 2, "on_exhausted": "fallback", "fallback_text": "I pass."}
    reward = {"schedule": {"kind": "constant", "value": 9.0}}
    with serving({"chat": random_chat(**align, **reward)}) as running:
        [choice] = post(running, REQUEST).json()["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == choice["message"]["refusal"] == "I pass."


def test_several_models(server: RunningServer) -> None:
    texts = {}
    for model in ("chat", "embedded"):
        body = {"model": model, "prompt": "This movie", "seed": 1, "max_tokens": 8}
        answer = post(server, body, "/v1/completions").json()
        assert answer["model"] == model
        texts[model] = answer["choices"][0]["text"]
    assert texts["chat"] != texts["embedded"]


def test_types_of_openai_resolve() -> None:
    """The names that `unsupported` lists are read from the annotations of OpenAI's own types."""
    assert "messages" in get_type_hints(chat_create_params.CompletionCreateParamsBase)
