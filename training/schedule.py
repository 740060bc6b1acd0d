"""The thresholds that are shipped with the pair, from pilot answers of the pair itself.

`align.yaml`: calibrated for the settings of the test that serve the pair best (chosen by
`benchmarks/embedded_pair.py`). `ramp.yaml`: for every other segment length, a ramp in tokens.
Pilots continue openings of unlabelled training reviews; nobody judges by them.
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
    calibrate,
)
from stars_engine.calibration.settings import identity
from training.data import read_reviews

SEGMENT_LEN, TARGET_ACCEPTANCE = 8, 0.5
NUM_PILOTS, OPENING_WORDS = 160, 12
RAMP_STAGE_LEN, NUM_RAMP_STAGES, RAMP_ACCEPTANCE = 16, 8, 0.4


def make_schedule(imdb: Path, directory: Path) -> dict[str, Any]:
    """Calibrate on openings of training reviews; write both files; return what is predicted."""
    started = time.process_time()
    openings = [
        " ".join(text.split()[:OPENING_WORDS])
        for text in read_reviews(imdb / "train_unsup.jsonl.gz")[:NUM_PILOTS]
    ]
    config = StarsConfig(
        model=TransformersModel(name_or_path=str(directory / "lm")),
        reward=ClassifierReward(name_or_path=str(directory / "reward")),
        align=AlignParams(schedule=PerSegmentSchedule(values=[-np.inf])),
        sampling=SamplingParams(seed=0),
    )
    with StarsEngine(config) as engine:
        schedule = calibrate(
            engine, openings, target_acceptance=TARGET_ACCEPTANCE, segment_len=SEGMENT_LEN
        )
        stages = _stage_thresholds(engine, openings)
    # The models go by these names once they are inside the package. Other sampling than the
    # pilots' is left to the engine's own watch over forced segments: no warning for each call.
    own = StarsConfig()
    made_for = {**schedule.made_for, "model": identity(own.model), "reward": identity(own.reward)}
    del made_for["sampling"]
    ramp = _fit_ramp(stages)
    _write(directory / "align.yaml", {"schedule": schedule.replace(made_for=made_for)})
    _write(directory / "ramp.yaml", {"schedule": ramp})
    assert schedule.predicted is not None
    return {
        "segment_len": SEGMENT_LEN,
        "target_acceptance": TARGET_ACCEPTANCE,
        "predicted": schedule.predicted.model_dump(),
        "ramp": ramp.model_dump(exclude_none=True),
        "cpu_s": time.process_time() - started,
    }


def _write(path: Path, values: dict[str, Any]) -> None:
    plain = {
        name: value.model_dump(mode="json", exclude_none=True) for name, value in values.items()
    }
    path.write_text(yaml.safe_dump(plain, sort_keys=False))


def _stage_thresholds(engine: StarsEngine, openings: list[str]) -> list[float]:
    """Return, stage by stage, the quantile of first drafts on prefixes accepted so far."""
    thresholds: list[float] = []
    for stage in range(NUM_RAMP_STAGES):
        results = engine.generate(
            openings,
            sampling=SamplingParams(seed=0, max_tokens=RAMP_STAGE_LEN * (stage + 1)),
            align=AlignParams(
                schedule=PerSegmentSchedule(values=[*thresholds, -np.inf]),
                segment_len=RAMP_STAGE_LEN,
            ),
        )
        drawn = [r.segments[stage].attempts[0].reward for r in results if len(r.segments) > stage]
        thresholds.append(float(np.quantile(np.array(drawn, float), 1 - RAMP_ACCEPTANCE)))
    return thresholds


def _fit_ramp(thresholds: list[float]) -> LinearSchedule:
    """Return the ramp nearest to the stage thresholds; its length is the best of whole stages."""
    tokens = RAMP_STAGE_LEN * np.arange(1, len(thresholds) + 1)
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
