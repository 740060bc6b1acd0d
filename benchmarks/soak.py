"""Run a mixed load for minutes: are texts right, is memory flat, does every thread end?

    python -m benchmarks.soak [--minutes 20] [--threads 8] [--tasks 8] [--seed 0] [--out FILE]

Callers of both adapters share one engine on the embedded pair: completions, chats, streams, tool
calls and structured output, from threads and from an event loop. A fifth of the calls is cancelled
halfway. The cases are computed first, each alone; every text under load must equal that one.

Every five seconds, memory, threads and file descriptors are read. The command fails if a text
differs, if a thread or descriptor is left over, or if resident memory in the second half of the
time leaves its median by more than 5 %. Latency is reported, never judged. The verdicts are printed
and, with all samples, written to `soak.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

import langchain_stars
import llamaindex_stars
from benchmarks.soak_report import print_verdicts, verdicts
from stars_engine import AlignParams, EngineParams, LinearSchedule, StarsConfig

SAMPLE_S = 5.0
PROMPTS = (
    "The film",
    "This movie was",
    "I had heard so much about it that",
    "My sister and I went to see it on a rainy Sunday, and as soon as the lights went down we knew",
)


class Verdict(BaseModel):
    """A verdict on a film."""

    stars: Annotated[int, Field(ge=1, le=5)]
    good: bool


def rating(stars: Annotated[int, Field(ge=1, le=5)]) -> str:
    """Rate a film."""
    return str(stars)


@dataclass(frozen=True)
class Case:
    """One kind of call with a prompt and a seed.

    Attributes:
        kind: A method of `Callers`.
        prompt: The prompt.
        seed: The seed.
        max_tokens: Tokens of the answer.
    """

    kind: str
    prompt: str
    seed: int
    max_tokens: int


class Callers:
    """The ways in which a program asks for text; each returns it."""

    def __init__(self, config: StarsConfig) -> None:
        self.llm = langchain_stars.StarsLLM(config=config)
        self.chat = langchain_stars.ChatStars(config=config)
        self.index = llamaindex_stars.StarsLLM(config=config)
        self._tool = FunctionTool.from_defaults(rating)

    def complete(self, prompt: str, **given: Any) -> str:
        return self.llm.invoke(prompt, **given)

    def complete_index(self, prompt: str, **given: Any) -> str:
        return self.index.complete(prompt, **given).text

    def stream(self, prompt: str, **given: Any) -> Iterator[str]:
        yield from self.llm.stream(prompt, **given)

    def stream_index(self, prompt: str, **given: Any) -> Iterator[str]:
        yield from (part.delta or "" for part in self.index.stream_complete(prompt, **given))

    def chats(self, prompt: str, **given: Any) -> str:
        messages = [("system", "Answer briefly."), ("human", prompt)]
        return str(self.chat.invoke(messages, **given).text)

    def chats_index(self, prompt: str, **given: Any) -> str:
        return str(self.index.chat([ChatMessage(content=prompt)], **given).message.content)

    def tool(self, prompt: str, **given: Any) -> str:
        bound = self.chat.bind_tools([rating], tool_choice="rating", **given)
        return json.dumps([call["args"] for call in bound.invoke(prompt).tool_calls])

    def tool_index(self, prompt: str, **given: Any) -> str:
        answer = self.index.chat_with_tools(
            [self._tool], user_msg=prompt, tool_required=True, **given
        )
        calls = self.index.get_tool_calls_from_response(answer)
        return json.dumps([call.tool_kwargs for call in calls])

    def structured(self, prompt: str, **given: Any) -> str:
        return str(self.chat.with_structured_output(Verdict, **given).invoke(prompt))

    async def acomplete(self, prompt: str, **given: Any) -> str:
        return await self.llm.ainvoke(prompt, **given)

    async def achats_index(self, prompt: str, **given: Any) -> str:
        answer = await self.index.achat([ChatMessage(content=prompt)], **given)
        return str(answer.message.content)

    async def astructured(self, prompt: str, **given: Any) -> str:
        return str(await self.chat.with_structured_output(Verdict, **given).ainvoke(prompt))

    def close(self) -> None:
        for each in (self.llm, self.chat, self.index):
            each.close()


STREAMS = ("stream", "stream_index")
CALLS = ("complete", "complete_index", "chats", "chats_index", "tool", "tool_index", "structured")
TASKS = ("acomplete", "achats_index", "astructured")


@dataclass
class Sample:
    """What the process takes at one time."""

    seconds: float
    rss: int
    threads: int
    descriptors: int
    memory_bytes: dict[str, int]


@dataclass
class Soak:
    """The load and what it showed.

    Attributes:
        callers: Those who ask.
        until_s: When the load ends, on the monotonic clock.
        alone: The text of each case, asked alone.
        counts: Calls by outcome: "equal", "cancelled", "different".
        latencies_s: Of the calls that were not cancelled, by kind.
        samples: Memory, threads and descriptors, one after the other.
    """

    callers: Callers
    until_s: float = 0.0
    alone: dict[Case, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    different: list[tuple[Case, str]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, minutes: float, *, num_threads: int, num_tasks: int, seed: int) -> None:
        for case in cases():
            self.alone[case] = _text(partial(self.ask, case))
        self.until_s = time.monotonic() + 60 * minutes
        stopped = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(stopped,))
        sampler.start()
        try:
            with ThreadPoolExecutor(num_threads + 1) as pool:
                work = [pool.submit(self._call_on_thread, seed + i) for i in range(num_threads)]
                work.append(pool.submit(asyncio.run, self._call_in_tasks(num_tasks, seed)))
                for each in work:
                    each.result()
        finally:
            stopped.set()
            sampler.join()

    def ask(self, case: Case) -> str:
        """Ask once, on this thread."""
        call: Callable[..., Any] = getattr(self.callers, case.kind)
        given = {"seed": case.seed, "max_tokens": case.max_tokens}
        if case.kind in TASKS:
            return asyncio.run(call(case.prompt, **given))
        if case.kind in STREAMS:
            return "".join(call(case.prompt, **given))
        return str(call(case.prompt, **given))

    def _call_on_thread(self, seed: int) -> None:
        chosen = random.Random(seed)
        some = [case for case in self.alone if case.kind not in TASKS]
        while time.monotonic() < self.until_s:
            case = chosen.choice(some)
            if case.kind in STREAMS and chosen.random() < 0.5:
                stream = getattr(self.callers, case.kind)(
                    case.prompt, seed=case.seed, max_tokens=case.max_tokens
                )
                next(stream, None)
                stream.close()
                self._note(case, None, 0.0)
                continue
            started_s = time.perf_counter()
            text = _text(partial(self.ask, case))
            self._note(case, text, time.perf_counter() - started_s)

    async def _call_in_tasks(self, num_tasks: int, seed: int) -> None:
        await asyncio.gather(*[self._call_in_task(seed + 1000 + i) for i in range(num_tasks)])

    async def _call_in_task(self, seed: int) -> None:
        chosen = random.Random(seed)
        some = [case for case in self.alone if case.kind in TASKS]
        while time.monotonic() < self.until_s:
            case = chosen.choice(some)
            call: Callable[..., Coroutine[Any, Any, str]] = getattr(self.callers, case.kind)
            started_s = time.perf_counter()
            task = asyncio.create_task(
                call(case.prompt, seed=case.seed, max_tokens=case.max_tokens)
            )
            if chosen.random() < 0.3:
                await asyncio.sleep(0.2 * chosen.random())
                task.cancel()
            await asyncio.wait([task])
            if task.cancelled():
                self._note(case, None, 0.0)
            else:
                self._note(case, _text(task.result), time.perf_counter() - started_s)

    def _note(self, case: Case, text: str | None, seconds: float) -> None:
        with self.lock:
            if text is None:
                self.counts["cancelled"] += 1
                return
            self.latencies_s.setdefault(case.kind, []).append(seconds)
            self.counts["equal" if text == self.alone[case] else "different"] += 1
            if text != self.alone[case]:
                self.different.append((case, text))

    def _sample(self, stopped: threading.Event) -> None:
        process, started_s = psutil.Process(), time.monotonic()
        while not stopped.wait(SAMPLE_S):
            self.samples.append(
                Sample(
                    round(time.monotonic() - started_s, 1),
                    process.memory_info().rss,
                    process.num_threads(),
                    process.num_fds(),
                    self.callers.llm.engine().stats().memory_bytes,
                )
            )


def cases() -> Iterator[Case]:
    """Yield every kind of call with every prompt, at different lengths and seeds."""
    for number, kind in enumerate((*CALLS, *STREAMS, *TASKS)):
        for index, prompt in enumerate(PROMPTS):
            yield Case(kind, prompt, seed=number + index, max_tokens=(16, 40, 64, 96)[index])


def _text(ask: Callable[[], str]) -> str:
    """Return an answer, or the error that ended it: both must be the same under load."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001 - compared, and printed if it differs
        return f"{type(error).__name__}: {error}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak.json"), help="the JSON report")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = StarsConfig(
        align=AlignParams(
            schedule=LinearSchedule(initial_weight=0.5, target=1.0),
            segment_len=8,
            num_candidates=4,
            max_attempts=8,
        ),
        engine=EngineParams(max_cache_bytes=64_000_000),
    )
    soak = Soak(Callers(config))
    soak.run(
        options.minutes,
        num_threads=options.threads,
        num_tasks=options.tasks,
        seed=options.seed,
    )
    stats = soak.callers.llm.engine().stats()
    soak.callers.close()
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("stars-"):
            thread.join(10.0)
    left = [t.name for t in threading.enumerate() if t.name.startswith("stars-")]
    print(f"calls: {dict(soak.counts)}; engine: {stats.num_finished} finished, "
          f"{stats.num_cancelled} cancelled, {stats.num_failed} failed")  # fmt: skip
    for sample in soak.samples[:: max(1, len(soak.samples) // 20)]:
        print(f"{sample.seconds:7.0f} s  {sample.rss / 1e6:7.0f} MB  {sample.threads} threads  "
              f"{sample.descriptors} descriptors")  # fmt: skip
    print("bytes by holder at the end:", soak.samples[-1].memory_bytes)
    for case, text in soak.different[:10]:
        print("DIFFERENT", case, repr(soak.alone[case]), repr(text))
    found = verdicts(
        soak.samples,
        num_different=len(soak.different),
        left=left,
        latencies_s=soak.latencies_s,
    )
    print_verdicts(found)
    samples = [vars(sample) for sample in soak.samples]
    options.out.write_text(
        json.dumps({**found, "calls": dict(soak.counts), "samples": samples}, indent=1)
    )
    return int(not found["ok"])


if __name__ == "__main__":
    sys.exit(main())
