"""The thresholds shipped with the embedded pair."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml

from stars_engine.config.params import AlignParams
from stars_engine.schedules import CalibratedSchedule, Schedule


@cache
def embedded_align() -> AlignParams:
    """The alignment settings shipped with the embedded pair: calibrated thresholds."""
    return _read("align.yaml")


def embedded_schedule(align: AlignParams) -> Schedule | None:
    """Return the shipped thresholds that go with a test.

    The calibrated ones are made for one segment length and one set of bounds. A test that sets
    others gets a ramp in tokens, which means the same at every segment length.
    """
    shipped = embedded_align().schedule
    brought = shipped.carried if isinstance(shipped, CalibratedSchedule) else {}
    own = align.model_fields_set & brought.keys()
    if all(getattr(align, name) == brought[name] for name in own):
        return shipped
    return _read("ramp.yaml").schedule


@cache
def _read(name: str) -> AlignParams:
    text = (resources.files("stars_engine") / "embedded" / name).read_text()
    return AlignParams(**yaml.safe_load(text))
