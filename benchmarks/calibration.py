"""Validate calibrated thresholds on other prompts.

For each pair of models, segment length and target, the script calibrates on openings of training
reviews, then answers openings of held-out reviews, and compares the prediction with the
observation. Nothing is timed; texts and figures depend only on the seeds.

    python benchmarks/calibration.py --shared DIR

DIR holds `data/imdb` and `models/` (imdb-lm-656K, rm-sentiment-656K).
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import torch

from stars_engine import (
    AlignParams,
    CalibratedSchedule,
    NoSchedule,
    StarsConfig,
    StarsEngine,
    calibrate,
    verify,
)

OPENING_WORDS = 12
TOLERANCE, SHARE = 0.05, 0.10  # for the acceptance; for budget and forced rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--pairs", nargs="+", default=["imdb-656K", "embedded"])
    parser.add_argument("--segment-lens", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--answers", type=int, default=2, help="answers per prompt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    imdb = options.shared / "data" / "imdb"
    pilot = openings(imdb / "train_pos.jsonl.gz") + openings(imdb / "train_neg.jsonl.gz")
    others = openings(imdb / "dev_pos.jsonl.gz") + openings(imdb / "dev_neg.jsonl.gz")
    print(f"{len(pilot)} pilot prompts, {len(others)} others, {options.answers} answers each")
    print("| pair | segment_len | target | acceptance | budget | forced | holds |")
    print("|---|---:|---:|---|---|---|---|")
    records = []
    for name in options.pairs:
        with StarsEngine(pair(name, options.shared)) as engine:
            for length in options.segment_lens:
                for target in options.targets:
                    schedule = calibrate(
                        engine, pilot, target_acceptance=target, segment_len=length
                    )
                    seen = verify(engine, schedule, others, num_answers=options.answers)
                    print(row(name, length, target, schedule, seen.observed), flush=True)
                    records.append(
                        {
                            "pair": name,
                            "segment_len": length,
                            "target": target,
                            **seen.model_dump(mode="json"),
                        }
                    )
    print(json.dumps(records))


def pair(name: str, shared: Path) -> StarsConfig:
    if name == "embedded":
        return StarsConfig()
    return StarsConfig(
        model=str(shared / "models" / "imdb-lm-656K"),
        reward=str(shared / "models" / "rm-sentiment-656K"),
        align=AlignParams(schedule=NoSchedule()),
    )


def openings(path: Path, count: int = 100) -> list[str]:
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            words = json.loads(line)["text"].replace("<br />", " ").split()
            found.append(" ".join(words[:OPENING_WORDS]))
            if len(found) == count:
                break
    return found


def row(name: str, length: int, target: float, schedule: CalibratedSchedule, seen: object) -> str:
    """Return one line of the table: predicted, then observed."""
    cells, holds = [], []
    for field in ("acceptance", "budget", "forced"):
        predicted, observed = getattr(schedule.predicted, field), getattr(seen, field)
        cells.append(
            f"{predicted.value:.3f} [{predicted.low:.3f}, {predicted.high:.3f}] / "
            f"{observed.value:.3f}"
        )
        if field == "acceptance":
            holds.append(abs(observed.value - target) <= TOLERANCE)
        else:
            near = abs(observed.value - predicted.value) <= SHARE * predicted.value
            holds.append(near or predicted.holds(observed.value))
    verdict = (
        "yes"
        if all(holds)
        else "no: "
        + ", ".join(
            field
            for field, held in zip(("acceptance", "budget", "forced"), holds, strict=True)
            if not held
        )
    )
    return f"| {name} | {length} | {target} | {' | '.join(cells)} | {verdict} |"


if __name__ == "__main__":
    main()
