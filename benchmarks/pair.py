"""Two random models of a chosen size, and the ways of writing that are timed.

Weights are random, so texts mean nothing. A coin decides what is accepted; the reward model runs
nevertheless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from stars_engine import (
    AlignParams,
    ClassifierReward,
    ConstantSchedule,
    NoSchedule,
    SamplingParams,
    TransformersModel,
)
from stars_engine.algorithm.baselines import PlainDecoding
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.backends.base import DraftRequest
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.core.autotune import CandidateAutotuner
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.request import Request, RequestQueue
from stars_engine.core.scheduler import Scheduler
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.types import RewardInput, RewardPrompt

MAX_ATTEMPTS = 20
SAMPLING = SamplingParams(temperature=1.0, top_k=40)

Clock = Callable[[Callable[[], Any]], float]


@dataclass(frozen=True)
class Size:
    """Shapes of both models.

    Attributes:
        lm: Settings of the language model's `LlamaConfig`.
        rm: Settings of the reward model's `LlamaConfig`.
        vocab_size: Vocabulary of both models.
        max_rows: Maximum number of candidates drafted together.
    """

    lm: dict[str, int]
    rm: dict[str, int]
    vocab_size: int
    max_rows: int = 128


@dataclass(frozen=True)
class Setting:
    """The setting of one row of a table.

    Attributes:
        length: Tokens of each prompt.
        acceptance: Probability that a candidate is accepted.
        segment_len: Tokens of a segment.
        num_prompts: Prompts at once.
    """

    length: int
    acceptance: float
    segment_len: int
    num_prompts: int


class Coin:
    """Runs a reward model, and returns 1 or 0 by a coin for each candidate."""

    def __init__(self, reward: ClassifierRewardModel, acceptance: float) -> None:
        self._reward, self._acceptance = reward, acceptance

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        """See `RewardModel`."""
        self._reward.score(inputs)
        return [float(_coin(item.token_ids) < self._acceptance) for item in inputs]


class Nothing:
    """A reward for plain sampling, which needs none."""

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        """See `RewardModel`."""
        return [0.0] * len(inputs)


class Pair:
    """Both models, and ways to write with them.

    Args:
        size: Shapes of the models.
        dtype: Type of their weights.
        longest: Maximum number of tokens that they read.
        device: Device of the models.
        clock: Returns the seconds that a call takes.

    Attributes:
        generated_per_kept: Tokens that the last `write` generated for each token that it kept.
    """

    def __init__(
        self, size: Size, dtype: torch.dtype, longest: int, device: str, clock: Clock
    ) -> None:
        self.size, self.device, self.seconds = size, device, clock
        shape: dict[str, Any] = {
            "vocab_size": size.vocab_size,
            "max_position_embeddings": longest,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
        }
        words = {f"t{index}": index for index in range(size.vocab_size)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")),
            pad_token="t0",
        )
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # creating float32 weights first would take twice the memory
        try:
            with torch.device(device):
                lm = LlamaForCausalLM(LlamaConfig(**shape, **size.lm)).eval()
                rm_config = LlamaConfig(**shape, **size.rm, num_labels=1)
                self.reward_model = LlamaForSequenceClassification(rm_config).eval()
        finally:
            torch.set_default_dtype(default)
        self.generated_per_kept = 1.0
        # Like an engine, which keeps one as long as its model is loaded.
        self._autotuner = CandidateAutotuner()
        self.lm = TransformersBackend(TransformersModel(model=lm, tokenizer=tokenizer))
        self.rm = ClassifierRewardModel(
            ClassifierReward(model=self.reward_model, tokenizer=tokenizer, read="ids"),
            self.lm.codec.fingerprint(),
        )

    def write(
        self, setting: Setting, num_candidates: int | str | None, *, num_tokens: int, seed: int
    ) -> tuple[float, float]:
        """Return seconds of decoding per kept token, and seconds of reading prompts.

        Args:
            setting: The row.
            num_candidates: Candidates drafted at once; None for plain sampling, without rewards.
            num_tokens: Tokens of each answer.
            seed: Seed of the turn.
        """
        plain = num_candidates is None
        align = AlignParams(
            schedule=NoSchedule() if plain else ConstantSchedule(value=0.5),
            segment_len=setting.segment_len,
            max_attempts=MAX_ATTEMPTS,
            **({} if plain else {"num_candidates": num_candidates}),
        )
        sampling = SAMPLING.replace(max_tokens=num_tokens)
        reward: Any = Nothing() if plain else Coin(self.rm, setting.acceptance)
        decoding = PlainDecoding() if plain else StarsDecoding()
        requests = []
        for index in range(setting.num_prompts):
            ids = self.prompt(setting.length, seed + index)
            prompt = RewardPrompt("", token_ids=ids)
            noise = CounterNoise(seed=seed + index, prompt_ids=ids, sample_index=0)
            rollout = Rollout(ids, prompt, sampling, align, noise)
            requests.append(Request(rollout, reward, decoding))
        autotuner = self._autotuner if num_candidates == "auto" else None
        core = EngineCore(self.lm, Scheduler(max_rows=self.size.max_rows), autotuner=autotuner)
        core.add(RequestQueue.of(requests))

        def read() -> None:
            """Draft one token, which requires only reading the prompts."""
            rollouts = [request.rollout for request in requests]
            self.lm.draft(
                [
                    DraftRequest(
                        r.prompt_ids, len(r.prompt_ids), (0.5,), sampling, handle=request.handle
                    )
                    for r, request in zip(rollouts, requests, strict=True)
                ]
            )
            if not plain:
                self.rm.score([RewardInput(r.reward_prompt, "", ()) for r in rollouts])

        def decode() -> None:
            while core.has_unfinished:
                core.step()

        reading_s, decoding_s = self.seconds(read), self.seconds(decode)
        usages = [request.rollout.result().usage for request in requests]
        generated = sum(usage.num_generated_tokens for usage in usages)
        self.generated_per_kept = generated / sum(usage.num_kept_tokens for usage in usages)
        return decoding_s / (num_tokens * setting.num_prompts), reading_s

    def generate(self, length: int, *, num_tokens: int, seed: int) -> float:
        """Return seconds per token of transformers' own `generate`, without its prefill."""
        ids = torch.tensor([self.prompt(length, seed)], device=self.device)

        def run(count: int) -> Callable[[], Any]:
            return lambda: self.call_generate(ids, count)

        return (self.seconds(run(num_tokens)) - self.seconds(run(1))) / (num_tokens - 1)

    def call_generate(self, ids: torch.Tensor, count: int, **settings: Any) -> Any:
        """Sample a number of tokens with `generate`, and other settings of it."""
        return self.lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=SAMPLING.temperature,
            top_k=SAMPLING.top_k,
            min_new_tokens=count,
            max_new_tokens=count,
            **settings,
        )

    def step_costs(self, length: int, counts: Sequence[int], steps: int = 10) -> list[float]:
        """Return seconds of a decode step with a number of candidates, including the sampler."""
        seconds = []
        for count in counts:
            align = AlignParams(
                schedule=ConstantSchedule(value=0.5),
                segment_len=steps,
                max_attempts=count,
                num_candidates=count,
            )
            ids = self.prompt(length, 1)
            noise = CounterNoise(seed=1, prompt_ids=ids, sample_index=0)
            sampling = SAMPLING.replace(max_tokens=steps)
            rollout = Rollout(ids, RewardPrompt("", token_ids=ids), sampling, align, noise)
            drafts = Request(rollout, Nothing(), StarsDecoding()).draft_requests(count)
            self.lm.draft([replace(drafts[0], uniforms=(0.5,))])  # reads the prompt
            seconds.append(self.seconds(lambda drafts=drafts: self.lm.draft(drafts)) / steps)
        return seconds

    def prompt(self, length: int, seed: int) -> tuple[int, ...]:
        """Return random tokens."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, self.size.vocab_size, (length,), generator=generator)
        return tuple(ids.tolist())


def _coin(ids: Sequence[int]) -> float:
    digest = hashlib.blake2b(repr(tuple(ids)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
