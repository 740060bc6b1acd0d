"""Write aligned text with LlamaIndex and the small models of the package. Runs offline.

Run it with `python examples/quickstart_llamaindex.py`, or with your own models:

    python examples/quickstart_llamaindex.py --model NAME --reward NAME --target 8
"""

from __future__ import annotations

import argparse
import asyncio

from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage

from llamaindex_stars import StarsLLM


def main() -> None:
    """Complete, stream, chat, fill a prompt template, and answer from an event loop."""
    llm = StarsLLM(max_tokens=48, seed=7, **models_from_command_line())
    print("reads:   ", llm.metadata.context_window, "tokens")

    response = llm.complete("The acting in this movie")
    print("complete:", response.text)
    print("reward:  ", round(response.raw["reward"], 2), "usage:", response.additional_kwargs)

    print("stream:  ", end=" ")
    for part in llm.stream_complete("My wife and I"):
        print(part.delta, end=" | ", flush=True)
    print()

    print("chat:    ", llm.chat([ChatMessage("Have you seen it?")]).message.content)

    template = PromptTemplate("The {what} of this film")
    print("predict: ", llm.predict(template, what="ending"))

    async def several() -> None:
        answers = await asyncio.gather(*[llm.acomplete(f"Film number {i}") for i in range(3)])
        for answer in answers:
            print("async:   ", answer.text)

    asyncio.run(several())
    llm.close()


def models_from_command_line() -> dict[str, object]:
    """Parse `--model`, `--reward` and `--target`; without them, use the embedded pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a language model: hub name or directory")
    parser.add_argument("--reward", help="a reward model: hub name or directory")
    parser.add_argument("--target", type=float, help="the reward at the end of the ramp")
    given = parser.parse_args()
    if given.model is None and given.reward is None:
        return {}
    if None in (given.model, given.reward, given.target):
        parser.error("--model, --reward and --target must be used together")
    schedule = {"kind": "linear", "target": given.target}
    return {"model": given.model, "reward": given.reward, "schedule": schedule}


if __name__ == "__main__":
    main()
