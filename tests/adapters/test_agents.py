"""Agents of the ecosystem: what they do about a full context, and tools of an MCP server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langchain_stars import ChatStars
from stars_engine.chat.formats import HERMES
from tests.support.scripted import Script, scripted

pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
]
SUMMARY = "They spoke of long films."
SERVER = '''
from pathlib import Path

from mcp.server.fastmcp import FastMCP

server = FastMCP("files")


@server.tool()
def size(path: Path) -> int:
    """Returns the size of a file in bytes."""
    return len(Path(path).read_bytes())


server.run("stdio")
'''


def judge(prompt: str, completion: str) -> float:
    return 1.0


def chat_of(script: Script, context_len: int = 16_384) -> ChatStars:
    model = scripted(script)
    model.model.config.max_position_embeddings = context_len
    return ChatStars(
        model=model, reward=judge, schedule={"kind": "none"}, num_candidates=1, max_tokens=200
    )


def summarizer(conversation: str) -> str:
    """Answer a conversation with a summary, and sum up others; one token is one character."""
    return "I have read it." if SUMMARY in conversation else SUMMARY


def long_conversation(num_turns: int, size: int) -> list[Any]:
    turns = []
    for number in range(num_turns):
        turns += [HumanMessage(f"Part {number}. " + "x" * size), AIMessage("Go on.")]
    return [*turns, HumanMessage("Well?")]


async def test_summarization_recovers_from_a_full_context() -> None:
    chat = chat_of(summarizer, 6_000)
    middleware = SummarizationMiddleware(
        chat,
        trigger=("fraction", 0.8),
        keep=("messages", 1),
        token_counter=chat.get_num_tokens_from_messages,
        trim_tokens_to_summarize=None,
    )
    agent = create_agent(chat, [], middleware=[middleware])
    said = {"messages": long_conversation(5, 3_000)}
    for state in (agent.invoke(said), await agent.ainvoke(said)):
        assert SUMMARY in state["messages"][0].text
        assert state["messages"][-1].text == "I have read it."


@pytest.mark.slow
def test_deep_agents_recover_from_a_full_context() -> None:
    deepagents = pytest.importorskip("deepagents")
    chat = chat_of(summarizer, 40_000)
    agent = deepagents.create_deep_agent(chat, tools=[])
    state = agent.invoke({"messages": long_conversation(10, 4_000)})
    assert state["messages"][-1].text == "I have read it."


@pytest.mark.slow
async def test_an_agent_calls_an_mcp_tool_with_a_path(tmp_path: Path) -> None:
    clients = pytest.importorskip("langchain_mcp_adapters.client")
    server, given = tmp_path / "server.py", tmp_path / "given.txt"
    server.write_text(SERVER)
    given.write_text("twelve bytes")
    called = HERMES.write([("size", {"path": str(given)})])

    def script(conversation: str) -> str:
        return "It has 12." if "<tool_response>" in conversation else called

    client = clients.MultiServerMCPClient(
        {
            "files": {
                "transport": "stdio",
                "command": sys.executable,
                "args": [str(server)],
                "env": dict(os.environ),
            }
        }
    )
    tools = await client.get_tools()
    agent = create_agent(chat_of(script), tools)
    state = await agent.ainvoke({"messages": [HumanMessage("How large is it?")]})
    results = [each for each in state["messages"] if isinstance(each, ToolMessage)]
    assert [each.status for each in results] == ["success"]
    assert "12" in results[0].text
    assert state["messages"][-1].text == "It has 12."
