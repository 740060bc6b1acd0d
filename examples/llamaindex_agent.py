"""Run two kinds of agents whose answers are aligned. Runs offline.

A `FunctionAgent` calls tools in the model's own format. A `ReActAgent` calls them by text that a
grammar constrains. Both work with a model that was trained for neither. Run it with
`python examples/llamaindex_agent.py`. Your own chat model chooses its tools by itself:

    python examples/llamaindex_agent.py --model NAME --reward NAME --target 8
"""

import argparse
import asyncio
from typing import Any, Literal

from llama_index.core.agent import ReActChatFormatter
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.llms import ChatMessage, ChatResponseAsyncGen, MessageRole
from llama_index.core.tools import BaseTool

from llamaindex_stars import StarsLLM
from stars_engine import EbnfGrammar

Film = Literal["Harbour Lights", "The Long Winter", "Paper Moonlight"]
STARS = {"Harbour Lights": 5, "The Long Winter": 4, "Paper Moonlight": 2}
# Reasoning, then a tool call or the answer.
STEPS = EbnfGrammar(
    text=r"""
start: "Thought: " LINE "\n" (call | "Answer: " LINE)
call: "Action: rating\nAction Input: {\"film\": \"" FILM "\"}"
FILM: "Harbour Lights" | "The Long Winter" | "Paper Moonlight"
LINE: /[A-Za-z ,']{20,80}\./
"""
)


def rating(film: Film) -> str:
    """How good a film is."""
    return f"{film} has {STARS[film]} of 5 stars."


class ToolFirst(StarsLLM):
    """Requires a tool call first, then an answer, because the small model cannot choose."""

    async def astream_chat_with_tools(
        self, tools: list[BaseTool], chat_history: list[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Stream an answer to a conversation with tools."""
        called = any(message.role == MessageRole.TOOL for message in chat_history)
        kwargs["tool_choice"] = "none" if called else "required"
        return await super().astream_chat_with_tools(tools, chat_history=chat_history, **kwargs)


async def main() -> None:
    """Ask both agents."""
    args = arguments()
    is_small = args.model is None
    fields = {"max_tokens": 64, "seed": 7, **models(args)}
    llm = (ToolFirst if is_small else StarsLLM)(**fields)
    await show(FunctionAgent(tools=[rating], llm=llm), args.question)
    stepping = StarsLLM(**fields, grammar=STEPS, judge="all") if is_small else llm
    # The default system prompt is longer than the context of the small model.
    header = {"formatter": ReActChatFormatter(system_header="{tool_desc}")} if is_small else {}
    await show(ReActAgent(tools=[rating], llm=stepping, **header), args.question)
    raw = (await llm.achat([ChatMessage(args.question)])).raw
    print("reward:", round(raw["reward"], 2), "usage:", raw["usage"])
    llm.close()
    stepping.close()


async def show(agent: FunctionAgent | ReActAgent, question: str) -> None:
    """Run an agent, and print its tool calls and its answer."""
    print(type(agent).__name__)
    run = agent.run(question, max_iterations=40)
    async for event in run.stream_events():
        if isinstance(event, ToolCallResult):
            print("  calls: ", event.tool_name, event.tool_kwargs, "->", event.tool_output)
    print("  answer:", " ".join(str(await run).split()))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--question", default="Is Harbour Lights any good?")
    parser.add_argument("--model", help="a language model: hub name or directory")
    parser.add_argument("--reward", help="a reward model: hub name or directory")
    parser.add_argument("--target", type=float, help="the reward at the end of the ramp")
    given = parser.parse_args()
    if len({given.model is None, given.reward is None, given.target is None}) > 1:
        parser.error("--model, --reward and --target must be used together")
    return given


def models(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of the adapter; without `--model`, those of the embedded pair."""
    if args.model is None:
        return {}
    schedule = {"kind": "linear", "target": args.target}
    return {"model": args.model, "reward": args.reward, "schedule": schedule}


if __name__ == "__main__":
    asyncio.run(main())
