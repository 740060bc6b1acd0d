"""Answer a hundred prompts at once, and write the answers with rewards as JSON lines. Runs offline.

The engine batches all prompts; a progress bar counts the answers. A prompt that fails does not
affect the others. Run it with `python examples/langchain_batch.py`, or with your own models and
prompts (one per line):

    python examples/langchain_batch.py --model NAME --reward NAME --target 8 \
        --prompts FILE --output answers.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from pathlib import Path
from typing import Any

from tqdm import tqdm

from langchain_stars import StarsLLM

SUBJECTS = [
    "acting",
    "music",
    "plot",
    "ending",
    "camera",
    "script",
    "cast",
    "director",
    "story",
    "hero",
]
OPENINGS = [
    "The {} in this movie",
    "I thought the {}",
    "What I liked about the {}",
    "Without its {}, this film",
    "My friends said the {}",
    "The {} reminded me",
    "Everything but the {}",
    "At first the {}",
    "Let me begin with the {}:",
    "Nobody talks about the {}, but",
]


def main() -> None:
    """Answer all prompts, and write the answers and errors."""
    args = arguments()
    prompts = [opening.format(subject) for opening in OPENINGS for subject in SUBJECTS]
    if args.prompts is not None:
        prompts = args.prompts.read_text(encoding="utf-8").splitlines()
    args.output.touch()  # fails now if it cannot be written
    llm = StarsLLM(max_tokens=16, seed=7, **models(args))
    records = asyncio.run(answer_all(llm, prompts))
    with args.output.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    failed = [record["error"] for record in records if "error" in record]
    print(f"{len(records)} lines in {args.output}, {len(failed)} of them failed")
    if len(failed) == len(records):
        raise SystemExit(f"all failed; the first one: {failed[0]}")
    rewards = [record["reward"] for record in records if record.get("reward") is not None]
    print("reward: mean", round(statistics.mean(rewards), 2), "least", round(min(rewards), 2))
    llm.close()


async def answer_all(llm: StarsLLM, prompts: list[str]) -> list[dict[str, Any]]:
    """Return one record per prompt, in order."""
    with tqdm(total=len(prompts), unit="answer") as bar:

        async def answer(prompt: str) -> dict[str, Any]:
            try:
                [[generation]] = (await llm.agenerate([prompt])).generations
            except Exception as error:  # noqa: BLE001 - any error becomes a line
                return {"prompt": prompt, "error": str(error)}
            finally:
                bar.update()
            info = generation.generation_info
            keys = ("reward", "finish_reason", "num_forced", "usage")
            record = {key: info[key] for key in keys}
            return {"prompt": prompt, "text": generation.text, **record}

        return await asyncio.gather(*map(answer, prompts))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=Path, help="a file with one prompt per line")
    parser.add_argument("--output", type=Path, default=Path("answers.jsonl"))
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
    main()
