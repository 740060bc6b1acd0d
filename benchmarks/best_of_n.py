"""STARS against Best-of-N at equal drafted tokens, told by a judge that did not guide.

On openings of held-out reviews the embedded pair writes 128 tokens under the preset `best`, and
under a linear ramp (segments of 32). Best-of-N for every N up to --samples is the exact expectation
over subsets of as many plain answers; between two N it is interpolated. The judge is a linear model
on words and pairs of words, of another architecture than the guide and trained on held-out reviews
that give no opening. Intervals: bootstrap over openings.

    python benchmarks/best_of_n.py --shared DIR     (needs scikit-learn)
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from math import comb
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from stars_engine import SamplingParams, StarsConfig, StarsEngine, StarsResult, preset

OPENING_WORDS, JUDGE_WORDS = 12, 120
FIRST, LAST = 200, 350  # reviews of each label that give openings; from 1,000 on they train
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
        base = lengths.mean(1)
        curve = np.stack([best_of(n, guide, opinion) for n in range(1, options.samples + 1)])
        show("vanilla", 1.0, guide.mean(), opinion.mean(1), curve, base)
        for n in (2, 4, options.samples):
            own = best_of(n, guide, guide).mean()
            show(f"Best-of-{n}", float(n), own, curve[n - 1], curve, base)
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
            times = drafted / base.sum()
            reward = float(np.mean([result.reward for result in results]))
            records.append(show(name, times, reward, judged(results), curve, base))
    print(json.dumps(records))


def read(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"].replace("<br />", " ") for line in lines]


def train_judge(reviews: dict[str, list[str]]) -> Pipeline:
    """Train on beginnings of the length that is judged; print its accuracy on others."""
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


def best_of(n: int, guide: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return `(openings,)`: mean value of the answer of highest guide, over all n-subsets."""
    total = guide.shape[1]
    order = np.argsort(guide, axis=1)
    weights = np.array([comb(rank, n - 1) / comb(total, n) for rank in range(total)])
    return np.take_along_axis(value, order, 1) @ weights


def show(
    name: str,
    times: float,
    guide: float,
    opinion: np.ndarray,
    curve: np.ndarray,
    base: np.ndarray,
) -> dict[str, object]:
    """Print one row; the difference is paired by opening, its interval a bootstrap over them."""
    low = min(int(times), len(curve) - 1)
    share = times - low
    equal = curve[low - 1] * (1 - share) + curve[low] * share if share > 0 else curve[low - 1]
    difference = opinion - equal
    generator = np.random.default_rng(0)
    picks = generator.integers(len(difference), size=(4000, len(difference)))
    interval = np.percentile(difference[picks].mean(1), (2.5, 97.5))
    wins = float(np.mean(opinion > curve[0]))
    print(
        f"| {name} | {times:.2f} | {guide:+.2f} | {opinion.mean():+.2f} | {wins:.0%} | "
        f"{difference.mean():+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}] |",
        flush=True,
    )
    return {
        "arm": name,
        "times": times,
        "guide": guide,
        "judge": float(opinion.mean()),
        "over_best_of_n": float(difference.mean()),
        "interval": interval.tolist(),
    }


if __name__ == "__main__":
    main()
