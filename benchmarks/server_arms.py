"""Ways to generate with two vLLM servers, and what they cost; see `benchmarks.servers`."""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
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
Totals = np.ndarray[Any, np.dtype[np.float64]]
BETA = 1e6  # so large that rewards do not matter


class Arm(NamedTuple):
    """One way to generate.

    Attributes:
        name: "plain", "stars" or "text".
        streams: Answers at the same time.
        prompt_len: Tokens of a prompt.
        acceptance: Probability that a draw is accepted; None for plain generation.
        candidates: Candidates at once.
    """

    name: str
    streams: int
    prompt_len: int
    acceptance: float | None = None
    candidates: int | Literal["auto"] = "auto"


class Measured(NamedTuple):
    """What one arm did in one pass.

    Attributes:
        tokens: Kept tokens.
        seconds: Wall time.
        servers_cpu_s: CPU seconds of the servers; 0 if unknown.
        client_cpu_s: CPU seconds of this process.
        num_drafts: Drafts that were answered.
        num_calls: Reward calls.
        num_prompt: Prompt tokens of the drafts.
        num_cached: Those of them that the server had in its prefix cache.
    """

    tokens: float
    seconds: float
    servers_cpu_s: float
    client_cpu_s: float
    num_drafts: float
    num_calls: float
    num_prompt: float
    num_cached: float

    @property
    def per_second(self) -> float:
        """Kept tokens per second."""
        return self.tokens / self.seconds

    @property
    def per_cpu_second(self) -> float:
        """Kept tokens per CPU second of the servers."""
        return self.tokens / self.servers_cpu_s if self.servers_cpu_s else math.nan

    @property
    def described(self) -> str:
        """The measurement as a line of text."""
        return (
            f"{self.tokens:.0f} tokens in {self.seconds:.1f} s, {self.per_second:.1f}/s, "
            f"{self.per_cpu_second:.1f} per CPU second, client {self.client_cpu_s:.1f} s, "
            f"{self.num_drafts:.0f} drafts, {self.num_calls:.0f} reward calls, "
            f"{self.hit_rate:.0%} cached"
        )

    @property
    def num_drafted(self) -> float:
        """Drafted tokens per kept token, without those of cancelled drafts."""
        return self.num_drafts * SEGMENT_LEN / self.tokens

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that came from the prefix cache."""
        return self.num_cached / self.num_prompt if self.num_prompt else math.nan


class _Window:
    """Measures a stretch in which all streams are busy.

    It begins when each stream has kept one segment on average, and ends after a number of kept
    tokens. So neither the first segments nor the last answers, which would run alone, count.

    Args:
        read: Returns totals, which are subtracted.
        warm_up: Kept tokens before it begins.
        tokens: Kept tokens until it ends.
    """

    def __init__(self, read: Callable[[], Totals], warm_up: int, tokens: int) -> None:
        self._read, self._warm_up, self._tokens = read, warm_up, tokens
        self._kept = 0
        self._start: Totals | None = None
        self.measured: Measured | None = None

    def note(self, num_kept: int) -> bool:
        """Count kept tokens; return whether the stretch has ended."""
        self._kept += num_kept
        if self._start is None:
            if self._kept >= self._warm_up:
                self._start, self._kept = self._read(), 0
        elif self.measured is None and self._kept >= self._tokens:
            self.measured = Measured(self._kept, *(self._read() - self._start))
        return self.measured is not None

    @property
    def result(self) -> Measured:
        """The measurement."""
        assert self.measured is not None
        return self.measured


class Arms:
    """Runs arms against two servers.

    Args:
        model: The language model and its server.
        reward: The reward model and its server.
        pids: Process ids of the servers.
        length: Tokens of an answer.
    """

    def __init__(
        self, model: OpenAIServerModel, reward: ServerReward, pids: Sequence[int], length: int
    ) -> None:
        self._pids, self._length = pids, length
        self._random = np.random.default_rng(0)
        self._config = StarsConfig(
            model=model,
            reward=reward,
            align=AlignParams(schedule=ConstantSchedule(value=0.0)),
            sampling=SamplingParams(
                max_tokens=length, min_tokens=length, temperature=1.0, top_k=None
            ),
        )
        self._model, self._reward = ServerBackend(model), ServerRewardModel(reward)
        self._engines: dict[Arm, StarsEngine] = {}

    def run(self, arm: Arm, tokens: int) -> Measured:
        """Generate with one arm, after prompts that no cache knows.

        Args:
            arm: The arm.
            tokens: Kept tokens that are measured.
        """
        num_answers = -(-tokens // self._length) + 3 * arm.streams
        if arm.name == "plain":  # all answers take equally long
            num_answers = max(1, round(tokens / self._length / arm.streams)) * arm.streams
            tokens = num_answers * self._length
        prompts = [self._prompt(arm.prompt_len) for _ in range(num_answers)]
        window = _Window(
            self._totals, 0 if arm.name == "plain" else SEGMENT_LEN * arm.streams, tokens
        )
        if arm.name == "stars":
            self._stars(prompts, arm, window)
        else:
            self._model.client.run(self._own(prompts, arm, window))
        return window.result

    def close(self) -> None:
        """Close the engines."""
        for engine in self._engines.values():
            engine.close()

    def _prompt(self, length: int) -> list[int]:
        """Return random words, whose text is encoded to the same tokens again."""
        ids: list[int] = []
        while len(ids) < length:
            token = int(self._random.integers(100, self._model.vocab_size // 2))
            if re.fullmatch(r" [a-z]+", self._model.codec.decode([token])):
                ids.append(token)
        return ids

    def _totals(self) -> Totals:
        drafts, calls = self._model.client.stats, self._reward.client.stats
        return np.array(
            [
                time.perf_counter(),
                sum(cpu_seconds(pid) for pid in self._pids),
                time.process_time(),
                drafts.num_requests,
                calls.num_requests,
                drafts.num_prompt_tokens,
                drafts.num_cached_tokens,
            ]
        )

    # --- arms ---

    def _stars(self, prompts: Sequence[list[int]], arm: Arm, window: _Window) -> None:
        """Generate with an engine, which stays for later passes, with what it has learned."""
        assert arm.acceptance is not None
        align = AlignParams(
            schedule=ConstantSchedule(value=-BETA * math.log(arm.acceptance)),
            beta=BETA,
            segment_len=SEGMENT_LEN,
            max_attempts=64,
            num_candidates=arm.candidates,
        )
        if arm not in self._engines:
            config = self._config.replace(align=align, engine=EngineParams(max_active=arm.streams))
            self._engines[arm] = StarsEngine(config, model=self._model, reward=self._reward)
        inputs = [TokenIds(prompt) for prompt in prompts]
        with self._engines[arm].stream(inputs) as events:
            for event in events:
                if event.segment and window.note(len(event.segment.token_ids)):
                    return

    async def _own(self, prompts: Sequence[list[int]], arm: Arm, window: _Window) -> None:
        """Generate with a loop for each stream, until enough is measured."""
        left = iter(prompts)

        async def answers() -> None:
            for prompt in left:
                if arm.name == "plain":
                    window.note(len(await self._complete(prompt)))
                elif await self._text(prompt, arm, window):
                    return

        window.note(0)
        await asyncio.gather(*(answers() for _ in range(arm.streams)))

    async def _complete(self, prompt: Sequence[int]) -> tuple[int, ...]:
        dialect, served = self._model.probed.dialect, self._model.probed.served
        asked = CompletionRequest(
            tuple(prompt), self._length, seed=secrets.randbits(62), min_tokens=self._length
        )
        client = self._model.client
        found = await client.call(dialect.path, dialect.body(asked, served.name), dialect.parse)
        return found.token_ids

    async def _text(self, prompt: Sequence[int], arm: Arm, window: _Window) -> bool:
        """Generate one answer the way of its_hub and search-and-learn; return whether to stop.

        Each candidate is a request with the whole text so far, and each reward reads the whole
        text. Salts keep the servers' prefix caches out of it.
        """
        text, num_kept = self._model.codec.decode(prompt), 0
        count = 4 if arm.candidates == "auto" else arm.candidates
        while num_kept < self._length and window.measured is None:
            drafts = await asyncio.gather(*(self._draft_text(text) for _ in range(count)))
            await self._score_texts([text + draft for draft in drafts])
            accepted = np.flatnonzero(self._random.random(count) < (arm.acceptance or 1))
            if len(accepted):
                text += drafts[accepted[0]]
                num_kept += SEGMENT_LEN
                window.note(SEGMENT_LEN)
        return window.measured is not None

    async def _draft_text(self, text: str) -> str:
        body = {
            "model": self._model.probed.served.name,
            "prompt": text,
            "max_tokens": SEGMENT_LEN,
            "min_tokens": SEGMENT_LEN,
            "temperature": 1.0,
            "cache_salt": secrets.token_hex(8),
        }
        found: dict[str, Any] = await self._model.client.call("/v1/completions", body, dict)
        self._model.client.stats.num_prompt_tokens += found["usage"]["prompt_tokens"]
        return str(found["choices"][0]["text"])

    async def _score_texts(self, texts: Sequence[str]) -> None:
        """Ask for rewards; no cached prefix is shared, not even within the call."""
        endpoint, served = self._reward.probed.endpoint, self._reward.probed.served

        async def score(text: str) -> None:
            body = endpoint.body([], served.name, salt=secrets.token_hex(8))
            await self._reward.client.call(endpoint.path, {**body, "input": [text]}, dict)

        await asyncio.wrap_future(self._reward.client.submit(_all(score(text) for text in texts)))


async def _all(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*calls)


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
