"""Run a workflow that branches if no draft is good enough. Runs offline.

One step asks for an aligned answer; the engine raises an error if no draft reaches the threshold.
The next step then handles the refusal. Run it with `python examples/llamaindex_workflow.py`, or
with your own models:

    python examples/llamaindex_workflow.py --model NAME --reward NAME --target 8
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step

from llamaindex_stars import StarsLLM
from stars_engine import AlignmentError


class Refused(Event):
    """No draft was good enough."""

    reason: str
    so_far: str


class Guarded(Workflow):
    """Answers a question, or passes it on."""

    def __init__(self, llm: StarsLLM) -> None:
        super().__init__(timeout=600)
        self._llm = llm

    @step
    async def answer(self, event: StartEvent) -> StopEvent | Refused:
        """Answer, or branch if no draft is accepted."""
        try:
            response = await self._llm.acomplete(event.opening)
        except AlignmentError as error:
            so_far = error.result.text if error.result is not None else ""
            return Refused(reason=str(error), so_far=so_far)
        reward = round(response.raw["reward"], 2)
        return StopEvent(result=f"{event.opening}{response.text}\n  reward: {reward}")

    @step
    async def refuse(self, event: Refused) -> StopEvent:
        """Handle a refusal."""
        return StopEvent(result=f"passed on to a person.\n  {event.reason}")


async def main() -> None:
    """Run the workflow with thresholds that drafts can reach, and with one that they cannot."""
    args = arguments()
    fields = {"max_tokens": 40, "seed": 7, "on_exhausted": "raise", **models(args)}
    never = {"schedule": {"kind": "constant", "value": 1e6}, "max_attempts": 2}
    # The first engine always keeps a draft; no draft reaches the threshold of the second.
    for given in ({**fields, "on_exhausted": "best"}, {**fields, **never}):
        llm = StarsLLM(**given)
        print(await Guarded(llm).run(opening=args.opening))
        llm.close()


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opening", default="The acting in this movie")
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
