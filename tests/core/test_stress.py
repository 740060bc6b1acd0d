"""Many callers of both frameworks at once: every text is the one obtained alone.

Over random models in float64, which leave nothing to rounding: the batch that a request falls into
is chance here.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

import langchain_stars
import llamaindex_stars
from stars_engine import (
    AlignParams,
    ClassifierReward,
    ConstantSchedule,
    EngineParams,
    StarsConfig,
    TransformersModel,
)
from stars_engine.runtime import registry

NUM_THREADS, NUM_TASKS, NUM_REPETITIONS = 64, 256, 10


def random_pair() -> StarsConfig:
    """A byte-level model and a reward model, small and random."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=len(letters), num_attention_heads=2, num_labels=1, pad_token_id=0, **sizes
    )
    torch.manual_seed(0)
    return StarsConfig(
        model=TransformersModel(model=LlamaForCausalLM(config).double(), tokenizer=tokenizer),
        reward=ClassifierReward(
            model=LlamaForSequenceClassification(config).double(), tokenizer=tokenizer
        ),
        align=AlignParams(schedule=ConstantSchedule(value=0.05), beta=0.02),
        # The cache of prefixes may grow up to this, so that other growth shows.
        engine=EngineParams(max_cache_bytes=16 * 2**20),
    )


@dataclass(frozen=True)
class Job:
    """One request; every eighth is cancelled halfway."""

    number: int

    @property
    def prompt(self) -> str:
        return ["The", "This movie was", "I had heard so much about it that"][self.number % 3]

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "seed": self.number % 5,
            "max_tokens": [5, 9, 24][self.number % 3],
            "segment_len": [4, 8][self.number % 2],
            "max_attempts": 4,
        }

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.prompt, *self.settings.values())

    @property
    def given_up(self) -> bool:
        return self.number % 8 == 7


JOBS = [Job(number) for number in range(NUM_THREADS + NUM_TASKS)]


@dataclass
class Both:
    """The same configuration in both frameworks."""

    langchain: langchain_stars.StarsLLM
    llamaindex: llamaindex_stars.StarsLLM

    def answer(self, job: Job) -> str | None:
        """Ask from a thread, in one of four ways."""
        if job.given_up:
            stream = self.langchain.stream(job.prompt, **job.settings)
            next(stream)
            stream.close()
            return None
        match job.number % 4:
            case 0:
                return self.langchain.invoke(job.prompt, **job.settings)
            case 1:
                return self.llamaindex.complete(job.prompt, **job.settings).text
            case 2:
                return "".join(self.langchain.stream(job.prompt, **job.settings))
            case _:
                *_, last = self.llamaindex.stream_complete(job.prompt, **job.settings)
                return last.text

    async def aanswer(self, job: Job) -> str | None:
        """Ask from an event loop, in one of four ways."""
        if job.given_up:
            task = asyncio.create_task(self.llamaindex.acomplete(job.prompt, **job.settings))
            await asyncio.sleep(0.01 * (job.number % 5))
            task.cancel()
            await asyncio.wait([task])
            return None
        match job.number % 4:
            case 0:
                return await self.langchain.ainvoke(job.prompt, **job.settings)
            case 1:
                return (await self.llamaindex.acomplete(job.prompt, **job.settings)).text
            case 2:
                chunks = [c async for c in self.langchain.astream(job.prompt, **job.settings)]
                return "".join(chunks)
            case _:
                stream = await self.llamaindex.astream_complete(job.prompt, **job.settings)
                *_, last = [response async for response in stream]
                return last.text

    def answer_all(self) -> dict[Job, str | None]:
        """All jobs at once, some from threads and the others from one event loop."""
        threaded, looped = JOBS[:NUM_THREADS], JOBS[NUM_THREADS:]

        async def gather() -> list[str | None]:
            return await asyncio.gather(*[self.aanswer(job) for job in looped])

        with ThreadPoolExecutor(NUM_THREADS + 1) as pool:
            in_loop = pool.submit(lambda: asyncio.run(gather()))
            answers = list(pool.map(self.answer, threaded))
        return dict(zip(JOBS, [*answers, *in_loop.result()], strict=True))


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    before = set(threading.enumerate())  # engines of other tests may not be collected yet
    config = random_pair()
    both = Both(langchain_stars.StarsLLM(config=config), llamaindex_stars.StarsLLM(config=config))
    yield both
    runtime = both.langchain.engine()._runtime
    both.langchain.close()
    both.llamaindex.close()
    assert runtime not in registry._runtimes.values()
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("stars-")]  # workers too


@pytest.mark.slow
def test_texts_equal_those_obtained_alone_and_memory_is_flat(both: Both) -> None:
    alone: dict[tuple[Any, ...], str] = {}
    for job in JOBS:
        if job.key not in alone:
            alone[job.key] = both.langchain.invoke(job.prompt, **job.settings)
    assert len(set(alone.values())) >= len(alone) / 2  # segment lengths may agree
    rate = both.langchain.engine().stats().acceptance_rate
    assert 0.2 < rate < 0.8
    process = psutil.Process(os.getpid())
    memory = []
    for _ in range(NUM_REPETITIONS):
        for job, text in both.answer_all().items():
            assert text == (None if job.given_up else alone[job.key]), job
        gc.collect()
        memory.append(process.memory_info().rss)
    stats = both.langchain.engine().stats()
    assert stats.num_loads == 1
    assert (stats.num_active, stats.num_waiting, stats.num_in_line) == (0, 0, 0)
    assert stats.num_failed == 0
    assert stats.num_finished + stats.num_cancelled >= NUM_REPETITIONS * len(JOBS) * 7 / 8
    assert max(memory[1:]) <= 1.05 * memory[1], [size // 2**20 for size in memory]
