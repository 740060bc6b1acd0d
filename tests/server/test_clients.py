"""Frameworks and other clients of OpenAI's API, unchanged, against the server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.support.servers import RunningServer, random_chat, serving

NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const body = { model: "chat", messages: [{ role: "user", content: "Hi" }], seed: 1 };
const whole = await client.chat.completions.create(body);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
const response = await client.responses.create({ model: "chat", input: "Hi" });
let code = null;
try { await client.chat.completions.create({ ...body, logprobs: true }); }
catch (error) { code = error.code; }
console.log(JSON.stringify({
  same: text === whole.choices[0].message.content, text, output: response.output_text, code,
}));
"""

LLAMA_INDEX = """
import json, sys
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

def weather(days: int) -> str:
    return "sunny"

server = {"model": "chat", "api_base": sys.argv[1], "api_key": "none", "max_retries": 0}
chat = {"is_chat_model": True, "is_function_calling_model": True}
llm = OpenAILike(**server, **chat, additional_kwargs={"seed": 1})
messages = [ChatMessage(role="user", content="Hi")]
whole = llm.chat(messages).message.content
streamed = "".join(part.delta or "" for part in llm.stream_chat(messages))
tool = FunctionTool.from_defaults(fn=weather)
called = llm.chat_with_tools([tool], user_msg="Hi", tool_required=True)
calls = llm.get_tool_calls_from_response(called)
continued = OpenAILike(**server).complete("This movie").text
print(json.dumps({
    "whole": whole, "streamed": streamed, "continued": continued, "tool": calls[0].tool_name,
}))
"""


class Film(BaseModel):
    """A film."""

    good: bool


@tool
def weather(days: int) -> str:
    """Tell the weather in some days."""
    return f"sunny in {days} days"


@pytest.fixture(scope="module")
def chatty() -> Iterator[RunningServer]:
    """A chat model whose answers end by themselves."""
    sampling = {"max_tokens": 1000, "min_tokens": 8}
    with serving({"chat": random_chat(end_bias=3.0, sampling=sampling)}) as running:
        yield running


@pytest.fixture
def chat(chatty: RunningServer) -> ChatOpenAI:
    return ChatOpenAI(model="chat", base_url=chatty.base_url, api_key="none", max_retries=0)


def test_langchain(chat: ChatOpenAI) -> None:
    whole = chat.invoke("Hi", seed=1)
    assert whole.text
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in chat.stream("Hi", seed=1)) == whole.text
    structured = chat.with_structured_output(Film, method="json_schema")
    assert isinstance(structured.invoke("Hi"), Film)
    called = chat.bind_tools([weather], tool_choice="weather").invoke("Hi")
    assert called.tool_calls[0]["name"] == "weather"


async def test_langchain_async(chat: ChatOpenAI) -> None:
    whole = await chat.ainvoke("Hi", seed=1)
    assert "".join([chunk.text async for chunk in chat.astream("Hi", seed=1)]) == whole.text


def test_langchain_over_responses(chatty: RunningServer) -> None:
    chat = ChatOpenAI(
        model="chat",
        base_url=chatty.base_url,
        api_key="none",
        max_retries=0,
        use_responses_api=True,
    )
    assert chat.invoke("Hi").text
    assert "".join(chunk.text for chunk in chat.stream("Hi"))
    assert chat.bind_tools([weather], tool_choice="weather").invoke("Hi").tool_calls


def test_an_agent_calls_a_tool_and_answers(chat: ChatOpenAI) -> None:
    @wrap_model_call
    def first_a_call(request: Any, handler: Callable[[Any], Any]) -> Any:
        """A random model needs to know when to call a tool."""
        has_result = any(isinstance(message, ToolMessage) for message in request.messages)
        return handler(request.override(tool_choice="none" if has_result else "required"))

    agent = create_agent(chat, [weather], middleware=[first_a_call])
    messages = agent.invoke({"messages": [("user", "How will the weather be?")]})["messages"]
    question, call, *_, answer = messages
    results = [message for message in messages if isinstance(message, ToolMessage)]
    assert question.text == "How will the weather be?"
    assert len(results) == len(call.tool_calls) > 0
    assert isinstance(answer, AIMessage)
    assert answer.text


@pytest.mark.slow
def test_llamaindex(chatty: RunningServer, tmp_path: Path) -> None:
    """The package needs an older client of OpenAI than the tested set, so it has its own folder."""
    packages = ["llama-index-llms-openai-like<0.9", "llama-index-llms-openai<0.9", "openai<3"]
    uv = shutil.which("uv")
    pip = [sys.executable, "-m", "pip"] if uv is None else [uv, "pip"]
    install = [*pip, "install", "--no-deps", "--target", str(tmp_path)]
    found = run_client([*install, *packages], [sys.executable, "-c", LLAMA_INDEX], chatty, tmp_path)
    assert found["whole"]
    assert found["streamed"] == found["whole"]
    assert found["continued"]
    assert found["tool"] == "weather"


@pytest.mark.slow
def test_node(chatty: RunningServer, tmp_path: Path) -> None:
    """OpenAI's client for JavaScript."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("Node.js, which is no Python package, is not installed")
    (tmp_path / "client.mjs").write_text(NODE, encoding="utf-8")
    install = [npm, "install", "--no-audit", "--no-fund", "openai@7"]
    found = run_client(install, [node, "client.mjs"], chatty, tmp_path)
    assert found["same"]
    assert found["text"]
    assert found["output"]
    assert found["code"] == "unsupported_parameter"


def run_client(
    install: list[str], command: list[str], running: RunningServer, folder: Path
) -> dict[str, Any]:
    """Install a client into a folder and run it; return what it prints. Skip if offline."""
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"the client cannot be installed: {installed.stderr.strip()[-200:]}")
    run = subprocess.run(
        [*command, running.base_url],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    values: dict[str, Any] = json.loads(run.stdout)
    return values


# What the suite asks for and the server does not serve.
FAILED = {"image-input", "chat-image-input"}
SKIPPED = {"reasoning-summary", "chat-reasoning-summary"}  # by the suite, for these models


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["open-responses", "openai-chat"])
def test_public_conformance_suite(chatty: RunningServer, format_: str) -> None:
    command = [sys.executable, "-m", "llm_comply.cli", "-u", chatty.base_url, "-k", "none"]
    run = subprocess.run(
        [*command, "-m", "chat", "--format", format_, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    results = json.loads(run.stdout)["results"]
    found = {
        status: {result["id"] for result in results if result["status"] == status}
        for status in ("passed", "failed", "skipped")
    }
    assert found["failed"] <= FAILED, results
    assert found["skipped"] <= SKIPPED
    assert len(found["passed"]) == {"open-responses": 11, "openai-chat": 7}[format_]
