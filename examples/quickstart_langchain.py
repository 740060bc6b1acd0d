"""Write aligned text in a LangChain chain, with the small models of the package. Runs offline.

Run it with `python examples/quickstart_langchain.py`, or with your own models:

    python examples/quickstart_langchain.py --model NAME --reward NAME --target 8
"""

from __future__ import annotations

import argparse
import asyncio

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from langchain_stars import StarsLLM


def main() -> None:
    """Answer one prompt, a batch, a stream, and prompts from an event loop."""
    llm = StarsLLM(max_tokens=48, seed=7, **models_from_command_line())
    chain = PromptTemplate.from_template("{opening}") | llm | StrOutputParser()

    print("invoke:", chain.invoke({"opening": "The acting in this movie"}))

    openings = [{"opening": text} for text in ("The music", "The ending", "The director")]
    for opening, text in zip(openings, chain.batch(openings), strict=True):
        print("batch: ", opening["opening"] + text)

    print("stream:", end=" ")
    for accepted in chain.stream({"opening": "My wife and I"}):
        print(accepted, end=" | ", flush=True)
    print()

    print("async: ", asyncio.run(chain.ainvoke({"opening": "From the very first scene,"})))

    [[generation]] = llm.generate(["The acting in this movie"]).generations
    account = generation.generation_info
    print("reward:", round(account["reward"], 2), "usage:", account["usage"])
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
