"""Find the fixed thresholds that are shipped with the pair, from pilot answers of the pair itself.

Stage by stage: segment k's threshold is the quantile of first-draw rewards that gives the target
acceptance on prefixes which the thresholds before it accepted. The ramp nearest
to the stages is what is shipped, so that it also serves another segment_len.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stars_engine import (
    AlignParams,
    ClassifierReward,
    LinearSchedule,
    PerSegmentSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from training.data import read_reviews

SEGMENT_LEN = 16
NUM_STAGES = 8
TARGET_ACCEPTANCE = 0.4
NUM_PILOTS = 48
OPENING_WORDS = 5


def make_schedule(imdb: Path, directory: Path) -> dict[str, Any]:
    """Calibrate on openings of training reviews, check on openings of held-out ones."""
    started = time.process_time()
    engine = StarsEngine(
        StarsConfig(
            model=TransformersModel(name_or_path=str(directory / "lm")),
            reward=ClassifierReward(name_or_path=str(directory / "reward")),
            align=_align(PerSegmentSchedule(values=[-np.inf])),
            sampling=SamplingParams(seed=0),
        )
    )
    pilots = _openings(imdb / "train_unsup.jsonl.gz")
    thresholds: list[float] = []
    for stage in range(NUM_STAGES):
        schedule = PerSegmentSchedule(values=[*thresholds, -np.inf])
        sampling = SamplingParams(seed=0, max_tokens=SEGMENT_LEN * (stage + 1))
        results = engine.generate(pilots, sampling=sampling, align=_align(schedule))
        drawn = [r.segments[stage].attempts[0].reward for r in results if len(r.segments) > stage]
        thresholds.append(float(np.quantile(drawn, 1 - TARGET_ACCEPTANCE)))
    shipped = _align(_fit_ramp(thresholds))
    values = shipped.model_dump(mode="json", exclude_defaults=True)
    values["schedule"] = shipped.schedule.model_dump(mode="json", exclude_none=True)
    (directory / "align.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    fresh = _openings(imdb / "dev_pos.jsonl.gz") + _openings(imdb / "dev_neg.jsonl.gz")
    plain = engine.vanilla(fresh)
    aligned = engine.generate(fresh, align=shipped)
    return {
        "stage_thresholds": [round(value, 2) for value in thresholds],
        "held_out_openings": len(fresh),
        "vanilla_reward": float(np.mean([r.reward for r in plain])),
        "stars_reward": float(np.mean([r.reward for r in aligned])),
        "drafted_over_kept": sum(r.usage.num_drafted_tokens for r in aligned)
        / sum(r.usage.num_kept_tokens for r in aligned),
        "acceptance_rate": sum(r.usage.num_accepted for r in aligned)
        / sum(r.usage.num_attempts for r in aligned),
        "forced_rate": sum(r.usage.num_forced for r in aligned)
        / sum(len(r.segments) for r in aligned),
        "cpu_s": time.process_time() - started,
    }


def _fit_ramp(thresholds: list[float]) -> LinearSchedule:
    """Return the ramp nearest to the stage thresholds; its length is the best of whole stages."""
    tokens = SEGMENT_LEN * np.arange(1, len(thresholds) + 1)
    fits = []
    for ramp_tokens in tokens[1:]:
        fraction = np.minimum(1, tokens / ramp_tokens)
        design = np.stack([1 - fraction, fraction], axis=1)
        (initial, target), *_ = np.linalg.lstsq(design, np.array(thresholds))
        error = float(np.square(design @ [initial, target] - thresholds).sum())
        fits.append((error, float(initial), float(target), int(ramp_tokens)))
    _, initial, target, ramp_tokens = min(fits)
    return LinearSchedule(
        initial=round(initial, 2), target=round(target, 2), ramp_tokens=ramp_tokens
    )


def _align(schedule: LinearSchedule | PerSegmentSchedule) -> AlignParams:
    return AlignParams(schedule=schedule, segment_len=SEGMENT_LEN)


def _openings(path: Path) -> list[str]:
    return [" ".join(text.split()[:OPENING_WORDS]) for text in read_reviews(path)[:NUM_PILOTS]]
