"""Compare the toxicity of continuations: STARS, plain sampling, and Best-of-N of equal tokens.

Prompts are rows of RealToxicityPrompts that neither the reward nor the judge learned from. The
script follows its protocol: continuations by nucleus sampling (p = 0.9) at temperature 1, scored
alone, without the prompt; expected maximum toxicity over so many continuations of a prompt. The
judge did not guide. It is a linear model on words and pieces of words, trained on rows that the
reward never saw. Best-of-N groups plain continuations at random, N at a time; between whole N it is
interpolated. Intervals: bootstrap over prompts.

    python -m training.safety toxicity --shared DIR --out REWARD
    python benchmarks/toxicity.py --shared DIR --reward REWARD     (needs scikit-learn)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from stars_engine import (
    AutoSchedule,
    ClassifierReward,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    preset,
)

sys.path.insert(0, str(Path(__file__).parent.parent))  # training/ is not installed

from training.safety.__main__ import SEED
from training.safety.figures import mean_interval
from training.safety.protocol import best_of, equal_tokens, summary
from training.safety.toxicity import judge
from training.safety.toxicity_data import as_continuation, read_rows, split_rows

EMBEDDED_LM = Path(__file__).parent.parent / "stars_engine" / "embedded" / "lm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--reward", type=Path, required=True, help="folder of the trained reward")
    parser.add_argument("--lm", type=Path, default=EMBEDDED_LM)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument(
        "--continuations", type=int, default=15, help="continuations per prompt and arm"
    )
    parser.add_argument("--max-n", type=int, default=3, help="the largest N of Best-of-N")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--budget", type=float, default=2.7, help="drafted over kept tokens")
    parser.add_argument("--segment-lens", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = read_rows(options.shared / "data" / "toxicity" / "realtoxicityprompts.jsonl")
    parts = split_rows(rows, seed=SEED)
    prompts = [row.prompt for row in parts["eval"][: options.prompts]]
    opinion = judge(parts["judge"])
    config = StarsConfig(
        model=str(options.lm),
        # The continuation alone, like its training rows and the judge.
        reward=ClassifierReward(name_or_path=str(options.reward), template="{bos}{completion}"),
        align=preset("best"),
        sampling=SamplingParams(
            temperature=1.0, top_k=None, top_p=0.9, max_tokens=options.max_tokens, seed=options.seed
        ),
    )
    pilot = tuple(row.prompt for row in parts["reward"][:96])
    likelihood = Likelihood(options.lm)
    records = []

    def shape(results: Sequence[StarsResult]) -> tuple[np.ndarray, np.ndarray]:
        texts = [as_continuation(result.text) for result in results]
        # An answer without a single kept token has no reward, and is never chosen.
        guide = [-np.inf if result.reward is None else result.reward for result in results]
        square = (len(prompts), -1)
        return np.reshape(guide, square), opinion.predict(texts).reshape(square)

    with StarsEngine(config) as engine:
        sampling = config.sampling.replace(n=options.continuations * options.max_n)
        plain = engine.vanilla(prompts, sampling=sampling)
        guide, toxicity = shape(plain)
        curve = {
            n: best_of(n, guide, toxicity, options.continuations)
            for n in range(1, options.max_n + 1)
        }
        per_answer = np.mean([len(result.token_ids) for result in plain])
        guards = Guards(prompts, likelihood)
        print(HEADER)
        for n, figures in curve.items():
            name = "vanilla" if n == 1 else f"Best-of-{n}"
            seen = guards.shown(plain) if n == 1 else "|  |  |  |"
            records.append(row(name, float(n), figures, curve, seen))
        sampling = config.sampling.replace(n=options.continuations)
        for length in options.segment_lens:
            schedule = AutoSchedule(budget=options.budget, segment_len=length, prompts=pilot)
            align = preset("best", schedule=schedule)
            align = align.replace(num_candidates=1)  # no surplus drafts
            results = engine.generate(prompts, sampling=sampling, align=align)
            drafted = np.mean([result.usage.num_drafted_tokens for result in results])
            figures = summary(*shape(results))
            name = f"STARS, segments of {length}"
            times = float(drafted / per_answer)
            records.append(row(name, times, figures, curve, guards.shown(results)))
    print(json.dumps({"options": vars(options), "arms": records}, default=str))


HEADER = (
    "| arm | tokens x | guide | judge mean | above 0.5 | expected max | any above 0.5 | "
    "mean - Best-of-N, equal tokens | max - Best-of-N, equal tokens | perplexity | distinct-2 | "
    "tokens |\n|---|---:|---:|---|---:|---|---:|---|---|---:|---:|---:|"
)


def row(
    name: str,
    times: float,
    figures: dict[str, np.ndarray],
    curve: dict[int, dict[str, np.ndarray]],
    guards: str,
) -> dict[str, object]:
    """Print one arm, compared with Best-of-N of as many drafted tokens, paired by prompt."""
    record: dict[str, object] = {"arm": name, "times": times}
    for figure, equal in equal_tokens(times, curve).items():
        record[figure] = mean_interval(figures[figure])
        record[f"{figure} - Best-of-N"] = mean_interval(figures[figure] - equal)
    cells = [
        f"{times:.2f}",
        f"{record['guide'][0]:+.2f}",
        shown(record["mean"]),
        f"{record['share'][0]:.1%}",
        shown(record["maximum"]),
        f"{record['any'][0]:.0%}",
        shown(record["mean - Best-of-N"], "+"),
        shown(record["maximum - Best-of-N"], "+"),
    ]
    print(f"| {name} | {' | '.join(cells)} {guards}", flush=True)
    return record


def shown(value: Sequence[float], sign: str = "") -> str:
    return "{:{sign}.3f} [{:{sign}.3f}, {:{sign}.3f}]".format(*value, sign=sign)


class Guards:
    """Measures text quality: perplexity under the base model, repeated pairs of words, length.

    The first continuation of every prompt is measured.
    """

    def __init__(self, prompts: Sequence[str], likelihood: Likelihood) -> None:
        self._prompts, self._likelihood = prompts, likelihood

    def shown(self, results: Sequence[StarsResult]) -> str:
        """Return the three figures as the last cells of a row."""
        firsts = [result for result in results if result.sample_index == 0 and result.token_ids]
        total = sum(
            self._likelihood.nats(self._prompts[r.prompt_index], r.token_ids) for r in firsts
        )
        num_tokens = sum(len(result.token_ids) for result in firsts)
        words = [result.text.lower().split() for result in firsts]
        pairs = [pair for own in words for pair in pairwise(own)]
        length = np.mean([len(result.token_ids) for result in results])
        perplexity = np.exp(total / num_tokens)
        return f"| {perplexity:.1f} | {len(set(pairs)) / len(pairs):.3f} | {length:.1f} |"


class Likelihood:
    """Computes the base model's likelihood of a continuation."""

    def __init__(self, directory: Path) -> None:
        self._model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(directory)

    @torch.inference_mode()
    def nats(self, prompt: str, token_ids: Sequence[int]) -> float:
        """Return the negative log-likelihood of the ids after the prompt, in nats."""
        before = self._tokenizer.encode(prompt)
        ids = torch.tensor([[*before, *token_ids]])
        logprobs = self._model(ids).logits[0, len(before) - 1 : -1].log_softmax(-1)
        return -float(logprobs.gather(1, ids[0, len(before) :, None]).sum())


if __name__ == "__main__":
    main()
