"""Time per accepted token of the local engine, in units of plain sampling.

    python -m benchmarks.local_engine [--lengths 64 512 2048] [--acceptances 0.2 0.5 0.8]
        [--segment-lens 32] [--prompts 1] [--tokens 128] [--repetitions 4] [--dtype float32]

A language model of 37 M and a reward model of 25 M random parameters (Llama: 8 layers of 384, 6
heads, 2 of keys; and 8 of 320), vocabulary 32,000. Each candidate is accepted by a coin of its own
with the given probability, whatever the reward model says of it, and the reward model is run all
the same. The unit is our own plain sampling of as many tokens, one prompt at a time, without any
reward; `generate` (temperature 1, top-k 40) is given in the same unit. Only decoding is timed;
reading the prompt is given apart. Time is processor time of one thread. Arms take turns; ratios are
taken within a turn, and the smallest, their median and the largest are given.

What decides: a decode step reads all weights whether one row or eight are decoded, so eight
candidates cost little more than one (a step's cost by rows is in the first table); a rejected round
costs one more; and the prompt's keys are read once for all of a prompt's candidates, so a longer
prompt costs little more than it does in plain sampling. "generate per attempt" and "no cache" are
computed, not run: blocks measured here times the mean number of draws. The first is one call of
`generate` and a whole pass of the reward model for each; the second one pass over the prompt and 64
tokens for each token, as in published code without a cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import transformers
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
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.baselines import Plain
from stars_engine.loop import Stars
from stars_engine.noise import CounterNoise
from stars_engine.pacing import Pacer
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rollout import Rollout
from stars_engine.rounds import Entry, Rounds
from stars_engine.types import RewardInput, RewardPrompt

VOCAB_SIZE = 32_000
MAX_ATTEMPTS = 20
LM = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6}
RM = {"hidden_size": 320, "intermediate_size": 864, "num_attention_heads": 5}
BEHIND = 64  # tokens of the answer that published code has read again, on average


@dataclass(frozen=True)
class Setting:
    """What one row of the table is about."""

    length: int
    acceptance: float
    segment_len: int
    num_prompts: int


class Coin:
    """Runs a reward model, and says 1 or 0 by a coin for each candidate."""

    def __init__(self, reward: ClassifierRewardModel, acceptance: float) -> None:
        self._reward, self._acceptance = reward, acceptance

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        """See `RewardModel`."""
        self._reward.score(inputs)
        return [float(_coin(item.token_ids) < self._acceptance) for item in inputs]


class Pair:
    """Both models, and ways to write with them."""

    def __init__(self, dtype: torch.dtype, longest: int) -> None:
        shape = {
            "vocab_size": VOCAB_SIZE,
            "num_hidden_layers": 8,
            "max_position_embeddings": longest,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
            "dtype": dtype,
        }
        torch.manual_seed(0)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(
                models.WordLevel({f"t{i}": i for i in range(VOCAB_SIZE)}, unk_token="t0")
            ),
            pad_token="t0",
        )
        lm = LlamaForCausalLM(LlamaConfig(**shape, **LM, num_key_value_heads=2)).to(dtype).eval()
        rm_config = LlamaConfig(**shape, **RM, num_key_value_heads=1, num_labels=1)
        rm = LlamaForSequenceClassification(rm_config).to(dtype).eval()
        self._reward_model = rm
        self._pacer = Pacer()  # as an engine has one for as long as its model is loaded
        self.lm = TransformersBackend(TransformersModel(model=lm, tokenizer=tokenizer))
        self.rm = ClassifierRewardModel(
            ClassifierReward(model=rm, tokenizer=tokenizer, read="ids"),
            self.lm.codec.fingerprint(),
        )

    def write(
        self, setting: Setting, num_candidates: int | str | None, *, num_tokens: int, seed: int
    ) -> tuple[float, float]:
        """Return seconds of decoding per kept token, and seconds of reading prompts.

        Args:
            setting: The row.
            num_candidates: Drafted at once; None for plain sampling, without rewards.
            num_tokens: Of each answer.
            seed: Of the turn.
        """
        plain = num_candidates is None
        align = AlignParams(
            schedule=NoSchedule() if plain else ConstantSchedule(value=0.5),
            segment_len=setting.segment_len,
            max_attempts=MAX_ATTEMPTS,
            **({} if plain else {"num_candidates": num_candidates}),
        )
        sampling = SamplingParams(temperature=1.0, top_k=40, max_tokens=num_tokens)
        reward: Any = _Nothing() if plain else Coin(self.rm, setting.acceptance)
        decoding = Plain() if plain else Stars()
        entries = []
        for index in range(setting.num_prompts):
            ids = _prompt(setting.length, seed + index)
            prompt = RewardPrompt("", token_ids=ids)
            noise = CounterNoise(seed=seed + index, prompt_ids=ids, sample_index=0)
            rollout = Rollout(ids, prompt, sampling, align, noise)
            entries.append(Entry(rollout, reward, decoding))
        pacer = self._pacer if num_candidates == "auto" else None
        rounds = Rounds(self.lm, max_rows=128, pacer=pacer)

        def read() -> None:
            rounds.join(entries)
            if not plain:
                self.rm.score([RewardInput(e.rollout.reward_prompt, "", ()) for e in entries])

        def decode() -> None:
            while rounds.num_active:
                rounds.step()

        reading_s, decoding_s = _seconds(read), _seconds(decode)
        return decoding_s / (num_tokens * setting.num_prompts), reading_s

    def generate(self, length: int, *, num_tokens: int, seed: int) -> float:
        """Return seconds per token of transformers' own `generate`, its prefill taken off."""
        ids = torch.tensor([_prompt(length, seed)])

        def run(count: int) -> Callable[[], Any]:
            return lambda: self.lm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=40,
                min_new_tokens=count,
                max_new_tokens=count,
            )

        return (_seconds(run(num_tokens)) - _seconds(run(1))) / (num_tokens - 1)

    def block(self, setting: Setting, seed: int) -> tuple[float, float]:
        """Return seconds of an attempt per token: as `generate` and a whole reward pass, uncached.

        The second is one pass of both models over everything for each token, as in code without any
        cache.
        """
        length = setting.length + BEHIND
        ids = torch.tensor([_prompt(length, seed)])
        whole = torch.tensor([_prompt(length + setting.segment_len, seed)])
        per_call = _seconds(
            lambda: self.lm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=40,
                min_new_tokens=setting.segment_len,
                max_new_tokens=setting.segment_len,
            )
        )
        with torch.inference_mode():
            judged = _seconds(lambda: self._reward_model(whole, use_cache=False))
            forward = _seconds(lambda: self.lm.model(ids, use_cache=False, logits_to_keep=1))
        return (per_call + judged) / setting.segment_len, forward + judged / setting.segment_len

    def step_costs(self, length: int, counts: Sequence[int], steps: int = 10) -> list[float]:
        """Return seconds of a decode step with so many candidates, sampler included."""
        seconds = []
        for count in counts:
            setting = Setting(length, 0.0, steps, 1)
            align = AlignParams(
                schedule=ConstantSchedule(value=0.5),
                segment_len=steps,
                max_attempts=count,
                num_candidates=count,
            )
            ids = _prompt(setting.length, 1)
            [slot] = self.lm.prefill([ids])
            sampling = SamplingParams(temperature=1.0, top_k=40, max_tokens=steps)
            noise = CounterNoise(seed=1, prompt_ids=ids, sample_index=0)
            rollout = Rollout(ids, RewardPrompt("", token_ids=ids), sampling, align, noise)
            rollout.slot = slot
            requests = [rollout.draft_request(index) for index in range(count)]
            seconds.append(_seconds(lambda requests=requests: self.lm.draft(requests)) / steps)
        return seconds


class _Nothing:
    """For plain sampling: an answer's reward is not wanted."""

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        """See `RewardModel`."""
        return [0.0] * len(inputs)


def main() -> None:
    options = read_options()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    dtype = getattr(torch, options.dtype)
    pair = Pair(dtype, max(options.lengths) + BEHIND + options.tokens + 64)
    report: dict[str, Any] = {
        "dtype": options.dtype,
        "paths": [pair.lm.path, pair.rm.path],
        "tokens": options.tokens,
        "repetitions": options.repetitions,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": platform.processor() or platform.machine(),
        "steps": {},
        "rows": [],
    }
    counts = (1, 2, 4, 8, 16)
    print("| prompt | decode step, rows: " + " | ".join(map(str, counts)) + " |")
    for length in options.lengths:
        turns = [pair.step_costs(length, counts) for _ in range(options.repetitions + 1)][1:]
        ratios = [median(turn[k] / turn[0] for turn in turns) for k in range(len(counts))]
        report["steps"][length] = ratios
        print(f"| {length} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    print("| prompt | accepted | segment | prompts | " + " | ".join(_ARMS) + " |", flush=True)
    for setting in [
        Setting(length, acceptance, segment_len, num_prompts)
        for num_prompts in options.prompts
        for segment_len in options.segment_lens
        for acceptance in options.acceptances
        for length in options.lengths
    ]:
        row = measure(pair, setting, options)
        report["rows"].append({**vars(setting), **row})
        cells = [f"{low:.2f} < {mid:.2f} < {high:.2f}" for low, mid, high in row.values()]
        named = f"{setting.length} | {setting.acceptance} | {setting.segment_len}"
        print(f"| {named} | {setting.num_prompts} | " + " | ".join(cells) + " |", flush=True)
    print(json.dumps(report))


_ARMS = (
    "ours, adaptive",
    "ours, m = 1",
    "ours, m = 8",
    "generate",
    "generate per attempt",
    "no cache",
    "reading both prompts / plain answer",
)


def measure(
    pair: Pair, setting: Setting, options: argparse.Namespace
) -> dict[str, tuple[float, float, float]]:
    """Return each arm's time per kept token over plain sampling's: smallest, median, largest."""
    alone = Setting(setting.length, setting.acceptance, setting.segment_len, 1)
    draws = sum((1 - setting.acceptance) ** i for i in range(MAX_ATTEMPTS))
    found: dict[str, list[float]] = {name: [] for name in _ARMS}
    for turn in range(options.repetitions + 1):
        seed = 100 * turn
        size = {"num_tokens": options.tokens, "seed": seed}
        unit, _ = pair.write(alone, None, **size)
        values = {}
        for name, count in (("ours, adaptive", "auto"), ("ours, m = 1", 1), ("ours, m = 8", 8)):
            seconds, reading_s = pair.write(setting, count, **size)
            values[name] = seconds
            if count == "auto":
                values[_ARMS[-1]] = reading_s / (options.tokens * setting.num_prompts)
        values["generate"] = pair.generate(setting.length, **size)
        per_attempt, uncached = pair.block(setting, seed)
        values["generate per attempt"] = draws * per_attempt
        values["no cache"] = draws * uncached
        again, _ = pair.write(alone, None, **size)
        if turn:  # the first one warms up
            for name in _ARMS:
                found[name].append(values[name] / ((unit + again) / 2))
    return {name: (min(v), median(v), max(v)) for name, v in found.items()}


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.local_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--acceptances", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    parser.add_argument("--segment-lens", type=int, nargs="+", default=[32])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=4)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def _prompt(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, VOCAB_SIZE, (length,), generator=generator).tolist())


def _coin(ids: Sequence[int]) -> float:
    digest = hashlib.blake2b(repr(tuple(ids)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _seconds(run: Callable[[], Any]) -> float:
    started_s = time.process_time()
    run()
    return time.process_time() - started_s


if __name__ == "__main__":
    main()
