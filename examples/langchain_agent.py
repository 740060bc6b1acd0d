"""Run an agent whose answers are aligned, and handle refusals. Runs offline.

The agent calls one of two tools and then answers. Its answer is drafted segment by segment. If no
draft reaches the threshold, the turn ends in a refusal, and the caller can branch: here, the
question is passed on to a person. Run it with `python examples/langchain_agent.py`. Your own chat
model chooses its tools by itself:

    python examples/langchain_agent.py --model NAME --reward NAME --target 8
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool

from langchain_stars import ChatStars, refusal_of

Film = Literal["Harbour Lights", "The Long Winter", "Paper Moonlight"]
STARS = {"Harbour Lights": 5, "The Long Winter": 4, "Paper Moonlight": 2}


@tool
def rating(film: Film) -> str:
    """How good a film is."""
    return f"{film} has {STARS[film]} of 5 stars."


@tool
def tickets(film: Film, seats: Literal[1, 2, 3, 4]) -> str:
    """Reserve seats."""
    return f"{seats} seats for {film} are reserved."


@wrap_model_call
def tool_first(
    request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
) -> ModelResponse:
    """Require a tool call first, then an answer, because the small model cannot choose."""
    called = any(isinstance(message, ToolMessage) for message in request.messages)
    return handler(request.override(tool_choice="none" if called else "required"))


def main() -> None:
    """Ask twice: with thresholds that drafts can reach, and with one that they cannot."""
    args = arguments()
    fields = {"max_tokens": 96, "seed": 7, **models(args)}
    ask(ChatStars(**fields), args)
    # If no draft is accepted, "stop" refuses; the default keeps the best draft.
    never = {"kind": "constant", "value": 1e6}
    ask(ChatStars(**{**fields, "schedule": never, "max_attempts": 2, "on_exhausted": "stop"}), args)


def ask(chat: ChatStars, args: argparse.Namespace) -> None:
    """Run the agent, and branch on its answer."""
    is_small = args.model is None
    agent = create_agent(chat, [rating, tickets], middleware=[tool_first] if is_small else [])
    messages = agent.invoke({"messages": [("user", args.question)]})["messages"]
    for message in messages:
        if isinstance(message, AIMessage) and message.tool_calls:
            print("calls: ", *(f"{call['name']}({call['args']})" for call in message.tool_calls))
        elif isinstance(message, ToolMessage):
            print("tool:  ", message.text)
    answer: Any = messages[-1]
    if (reason := refusal_of(answer)) is not None:
        print("refused:", reason, "-> passed on to a person")
    else:
        print("answer:", " ".join(answer.text.split()))
        print("reward:", answer.response_metadata["stars"]["reward"], answer.usage_metadata)
    chat.close()


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
        return {"on_overflow": "clamp"}
    schedule = {"kind": "linear", "target": args.target}
    return {"model": args.model, "reward": args.reward, "schedule": schedule}


if __name__ == "__main__":
    main()
