"""STARS over two vLLM servers against plain generation by the same server and client.

    python -m benchmarks.servers --model DIR --reward DIR --model-url URL --reward-url URL

Every draft and every reward is computed. Acceptance is scripted: each draw is accepted with the
same probability, whatever its reward. One pass runs every arm once, and passes are repeated, so
that other work on the machine disturbs all arms alike. Reported are kept tokens per second over
those of plain generation, and, with the process ids of the servers, kept tokens per CPU second.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    EngineParams,
    OpenAIServerModel,
    SamplingParams,
    ServerReward,
    StarsConfig,
    StarsEngine,
    TokenIds,
)
from stars_engine.backends.server import ServerBackend
from stars_engine.remote.dialects import CompletionRequest
from stars_engine.rewards.server import ServerRewardModel

SEGMENT_LEN = 32
BETA = 1e6  # so large that rewards do not matter


class Arm(NamedTuple):
    """One way to generate.

    Attributes:
        name: Shown in the table.
        streams: Answers at the same time.
        acceptance: Probability that a draw is accepted; None for plain generation.
        candidates: Candidates at once.
        prompt_len: Tokens of a prompt.
    """

    name: str
    streams: int
    acceptance: float | None
    candidates: int | Literal["auto"] = "auto"
    prompt_len: int = 50


class Measured(NamedTuple):
    """Kept tokens, seconds, and CPU seconds of the servers."""

    tokens: int
    seconds: float
    cpu_s: float

    @property
    def per_second(self) -> float:
        """Kept tokens per second."""
        return self.tokens / self.seconds

    @property
    def per_cpu_second(self) -> float:
        """Kept tokens per CPU second of the servers."""
        return self.tokens / self.cpu_s if self.cpu_s else math.nan


class Benchmark:
    """Runs arms against two servers.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._random = np.random.default_rng(0)
        model = OpenAIServerModel(
            base_url=options.model_url, tokenizer_name_or_path=str(options.model), timeout_s=600
        )
        reward = ServerReward(
            base_url=options.reward_url,
            tokenizer_name_or_path=str(options.reward),
            timeout_s=600,
            tolerance=1.0,
        )
        self.length = options.tokens
        self._config = StarsConfig(
            model=model,
            reward=reward,
            align=AlignParams(schedule=ConstantSchedule(value=0.0)),
            sampling=SamplingParams(
                max_tokens=self.length, min_tokens=self.length, temperature=1.0, top_k=None
            ),
        )
        self._model, self._reward = ServerBackend(model), ServerRewardModel(reward)

    def run(self, arm: Arm) -> Measured:
        """Generate all answers of one arm, with prompts that no cache knows."""
        prompts = [self._prompt(arm.prompt_len) for _ in range(self._num_answers(arm))]
        if arm.name == "plain":
            return self._timed(lambda: self._plain(prompts, arm.streams))
        if arm.name == "naive":
            return self._timed(lambda: self._naive(prompts, arm))
        return self._stars(prompts, arm)

    def _num_answers(self, arm: Arm) -> int:
        return max(self._options.answers, 2 * arm.streams if arm.streams > 1 else 2)

    def _prompt(self, length: int) -> list[int]:
        known = self._model.vocab_size // 2
        return [int(token) for token in self._random.integers(100, known, length)]

    def _timed(self, run: Callable[[], int]) -> Measured:
        cpu_s, started_s = self._cpu_s(), time.perf_counter()
        tokens = run()
        seconds = time.perf_counter() - started_s
        return Measured(tokens, seconds, self._cpu_s() - cpu_s)

    def _cpu_s(self) -> float:
        return sum(cpu_seconds(pid) for pid in self._options.pids)

    # --- arms ---

    def _plain(self, prompts: Sequence[list[int]], streams: int) -> int:
        async def one(prompt: list[int], limit: asyncio.Semaphore) -> int:
            async with limit:
                return len(await self._complete(prompt, self.length))

        async def run() -> int:
            limit = asyncio.Semaphore(streams)
            return sum(await asyncio.gather(*(one(prompt, limit) for prompt in prompts)))

        return int(self._model.client.run(run()))

    def _stars(self, prompts: Sequence[list[int]], arm: Arm) -> Measured:
        assert arm.acceptance is not None
        align = AlignParams(
            schedule=ConstantSchedule(value=-BETA * math.log(arm.acceptance)),
            beta=BETA,
            segment_len=SEGMENT_LEN,
            max_attempts=64,
            num_candidates=arm.candidates,
        )
        config = self._config.replace(align=align, engine=EngineParams(max_active=arm.streams))
        with StarsEngine(config, model=self._model, reward=self._reward) as engine:
            inputs = [TokenIds(prompt) for prompt in prompts]
            engine.generate(inputs[:1], sampling=SamplingParams(max_tokens=1))

            def run() -> int:
                return sum(len(item.token_ids) for item in engine.generate(inputs))

            return self._timed(run)

    def _naive(self, prompts: Sequence[list[int]], arm: Arm) -> int:
        """Send the whole prompt with each candidate, to servers whose caches never hit."""
        assert arm.acceptance is not None
        assert arm.candidates != "auto"
        count, acceptance = arm.candidates, arm.acceptance
        coins = np.random.default_rng(1)

        async def one(prompt: list[int], limit: asyncio.Semaphore) -> int:
            answer: list[int] = []
            async with limit:
                while len(answer) < self.length:
                    prefix = [*prompt, *answer]
                    drafts = await asyncio.gather(
                        *(
                            self._complete(prefix, SEGMENT_LEN, salt=secrets.token_hex(8))
                            for _ in range(count)
                        )
                    )
                    await self._score([[*prefix, *draft] for draft in drafts])
                    accepted = coins.random(count) < acceptance
                    if accepted.any():
                        answer += drafts[int(accepted.argmax())]
            return len(answer)

        async def run() -> int:
            limit = asyncio.Semaphore(arm.streams)
            return sum(await asyncio.gather(*(one(prompt, limit) for prompt in prompts)))

        return int(self._model.client.run(run()))

    async def _complete(
        self, prefix: Sequence[int], count: int, salt: str | None = None
    ) -> tuple[int, ...]:
        dialect, served = self._model.probed.dialect, self._model.probed.served
        asked = CompletionRequest(tuple(prefix), count, seed=secrets.randbits(62), min_tokens=count)
        body: dict[str, Any] = dialect.body(asked, served.name)
        body |= {} if salt is None else {"cache_salt": salt}
        found = await self._model.client.call(dialect.path, body, dialect.parse)
        return found.token_ids

    async def _score(self, rows: Sequence[Sequence[int]]) -> None:
        probed, client = self._reward.probed, self._reward.client
        body = probed.endpoint.body(rows, probed.served.name, salt=secrets.token_hex(8))
        parse = probed.endpoint.parse
        call = client.call(probed.endpoint.path, body, lambda answer: parse(answer, len(rows)))
        await asyncio.wrap_future(client.submit(call))


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and its children."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = 0
    for task in [pid, *children(pid)]:
        fields = Path(f"/proc/{task}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / ticks


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    own = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [each for child in map(int, own) for each in (child, *children(child))]


def arms(options: argparse.Namespace) -> list[Arm]:
    """Return the arms of one pass; each is compared with the plain arm before it."""
    found = []
    for streams in options.streams:
        for prompt_len in options.prompt_lens:
            found.append(Arm("plain", streams, None, prompt_len=prompt_len))
            for acceptance in options.acceptance:
                found.append(Arm("stars", streams, acceptance, options.candidates, prompt_len))
                if options.naive:
                    found.append(Arm("naive", streams, acceptance, options.naive, prompt_len))
    return found


def main() -> None:
    """Run the passes and print the table."""
    parser = argparse.ArgumentParser(description="STARS over servers against plain generation")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--reward", type=Path, required=True)
    parser.add_argument("--model-url", required=True)
    parser.add_argument("--reward-url", required=True)
    parser.add_argument("--pids", type=int, nargs="*", default=[], help="of the servers")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--acceptance", type=float, nargs="+", default=[0.5, 0.2])
    parser.add_argument("--prompt-lens", type=int, nargs="+", default=[50])
    parser.add_argument(
        "--candidates", type=lambda text: text if text == "auto" else int(text), default="auto"
    )
    parser.add_argument("--naive", type=int, default=0, help="candidates of the naive way")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--passes", type=int, default=3)
    options = parser.parse_args()
    benchmark = Benchmark(options)
    found: dict[Arm, list[Measured]] = {}
    for number in range(options.passes):
        for arm in arms(options):
            measured = benchmark.run(arm)
            found.setdefault(arm, []).append(measured)
            speeds = f"{measured.per_second:.1f}/s, {measured.per_cpu_second:.1f} per CPU second"
            print(f"pass {number + 1} {arm}: {speeds}", flush=True)
    report(found)


def report(found: dict[Arm, list[Measured]]) -> None:
    """Print the median over the passes of each arm, relative to the plain arm of its pass."""
    print("\n| streams | prompt | p | arm | tokens/s | of plain | of plain, per CPU second |")
    print("|---|---|---|---|---|---|---|")
    plain: list[Measured] = []
    for arm, runs in found.items():
        if arm.name == "plain":
            plain = runs
        pairs = list(zip(runs, plain, strict=True))
        ratio = median(run.per_second / base.per_second for run, base in pairs)
        cpu = median(run.per_cpu_second / base.per_cpu_second for run, base in pairs)
        speed = median(run.per_second for run in runs)
        shown = "" if arm.acceptance is None else f"{arm.acceptance:g}"
        print(
            f"| {arm.streams} | {arm.prompt_len} | {shown} | {arm.name} | {speed:.1f} | "
            f"{ratio:.2f} | {cpu:.2f} |"
        )


if __name__ == "__main__":
    main()
