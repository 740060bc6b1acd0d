"""Compare STARS with Best-of-N at equal drafted tokens, by a judge that did not guide.

On openings of held-out reviews, the embedded pair writes 128 tokens under the preset `best`, and
under a linear ramp (segments of 32). Best-of-N for every N up to --samples is the exact expectation
over subsets of as many plain answers; between two N it is interpolated. The judge is a linear model
on words and pairs of words. It has another architecture than the guide, and is trained on held-out
reviews that give no opening. Intervals: bootstrap over openings.

    python -m benchmarks.best_of_n --shared DIR     (needs scikit-learn)
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from benchmarks.comparison import best_of, over_prompts, win_rate
from stars_engine import SamplingParams, StarsConfig, StarsEngine, StarsResult, preset

OPENING_WORDS, JUDGE_WORDS = 12, 120
FIRST, LAST = 200, 350  # reviews of each label for openings; those from 1,000 on train the judge
TRAIN_FROM = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    reviews = {
        label: read(options.shared / "data" / "imdb" / f"dev_{label}.jsonl.gz")
        for label in ("pos", "neg")
    }
    judge = train_judge(reviews)
    openings = [
        " ".join(review.split()[:OPENING_WORDS])
        for label in ("pos", "neg")
        for review in reviews[label][FIRST:LAST]
    ]

    def judged(results: Sequence[StarsResult]) -> np.ndarray:
        texts = [openings[result.prompt_index] + result.text for result in results]
        return judge.decision_function(texts)

    sampling = SamplingParams(seed=options.seed)
    with StarsEngine(StarsConfig()) as engine:
        shape = (len(openings), options.samples)
        plain = engine.vanilla(openings, sampling=sampling.replace(n=options.samples))
        guide = np.array([result.reward for result in plain]).reshape(shape)
        opinion = judged(plain).reshape(shape)
        lengths = np.array([len(result.token_ids) for result in plain]).reshape(shape)
        per_answer = lengths.mean() * len(openings)
        curve = np.stack([best_of(n, guide, opinion) for n in range(1, options.samples + 1)])
        table = Table(opinion, curve)
        for n in (1, 2, 4, options.samples):
            own = float(best_of(n, guide, guide).mean())
            name = "vanilla" if n == 1 else f"Best-of-{n}"
            table.row(name, times=float(n), guide=own, judge=curve[n - 1])
        arms = {
            "preset best": preset("best", num_candidates=1),
            "ramp, segments of 32": preset(
                "paper",
                target=float(best_of(options.samples, guide, guide).mean()),
                initial_weight=0.5,
                num_candidates=1,
            ),
        }
        records = []
        for name, align in arms.items():
            results = engine.generate(openings, sampling=sampling, align=align)
            drafted = sum(result.usage.num_drafted_tokens for result in results)
            times = drafted / per_answer
            reward = float(np.mean([result.reward for result in results]))
            records.append(
                table.row(name, times=times, guide=reward, judge=judged(results), single=True)
            )
    print(json.dumps(records))


def read(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"].replace("<br />", " ") for line in lines]


def train_judge(reviews: dict[str, list[str]]) -> Pipeline:
    """Train on beginnings of the length that is judged; print the accuracy on others."""
    texts, labels = [], []
    for label, value in (("neg", 0), ("pos", 1)):
        own = [" ".join(text.split()[:JUDGE_WORDS]) for text in reviews[label][TRAIN_FROM:]]
        texts += own
        labels += [value] * len(own)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    judge = make_pipeline(vectorizer, LogisticRegression(C=4, max_iter=1000))
    judge.fit(texts, labels)
    held = [
        (text, value)
        for label, value in (("neg", 0), ("pos", 1))
        for text in reviews[label][FIRST:LAST]
    ]
    shown = [" ".join(text.split()[:JUDGE_WORDS]) for text, _ in held]
    accuracy = judge.score(shown, [value for _, value in held])
    print(f"judge: {len(texts)} reviews, accuracy {accuracy:.3f} on {len(held)} others")
    print("| arm | tokens x | guide | judge | win v. vanilla | judge - Best-of-N, equal tokens |")
    print("|---|---:|---:|---:|---:|---|")
    return judge


class Table:
    """Prints rows of arms, each compared with Best-of-N at its own number of drafted tokens.

    Args:
        opinion: The judge on plain answers, `(openings, samples)`.
        curve: The judge on Best-of-1, 2, ..., `(samples, openings)`.
    """

    def __init__(self, opinion: np.ndarray, curve: np.ndarray) -> None:
        self._opinion, self._curve = opinion, curve

    def row(
        self, name: str, *, times: float, guide: float, judge: np.ndarray, single: bool = False
    ) -> dict[str, object]:
        """Print a row; differences are paired by opening, intervals a bootstrap over openings."""
        low = min(int(times), len(self._curve) - 1)
        share = times - low
        equal = self._curve[low - 1]
        if share > 0:
            equal = equal * (1 - share) + self._curve[low] * share
        difference = judge - equal
        mean, low_end, high_end = over_prompts(
            lambda picked: float(difference[picked].mean()), len(difference)
        )
        wins = f"{win_rate(judge[:, None], self._opinion).mean():.0%}" if single else ""
        print(
            f"| {name} | {times:.2f} | {guide:+.2f} | {judge.mean():+.2f} | {wins} | "
            f"{mean:+.2f} [{low_end:+.2f}, {high_end:+.2f}] |",
            flush=True,
        )
        return {
            "arm": name,
            "times": times,
            "guide": guide,
            "judge": float(judge.mean()),
            "over_best_of_n": mean,
            "interval": [low_end, high_end],
        }


if __name__ == "__main__":
    main()
