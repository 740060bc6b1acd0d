"""Fixtures that several test files share.

Fixtures import torch and transformers: the process that hands tests to others needs neither.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest

from stars_engine import (
    AlignParams,
    CalibratedSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    calibrate,
)
from stars_engine.config import TransformersModel
from stars_engine.types import RewardInput
from tests.support.calibration import OPENINGS, QUICK
from tests.support.process_state import environment, process_state
from tests.support.shared_files import shared_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2ForTokenClassification

    from stars_engine.backends.transformers import TransformersBackend

# Small matrices: two threads only wait for each other, also in processes that tests start. torch
# reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell ignores interrupts for the processes that it starts in the background, and theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _process_state() -> Iterator[None]:
    """No module leaves the process changed for those that run after it in the same process."""
    state, variables, folders = process_state(), environment(), list(sys.path)
    yield
    found, left = process_state(), environment()
    changed = {name: (state[name], found[name]) for name in state if state[name] != found[name]}
    # Libraries append folders, and set variables of their own, when they are first used.
    if sys.path[: len(folders)] != folders:
        changed["sys.path"] = folders, list(sys.path)
    changed |= {
        name: (value, left.get(name))
        for name, value in variables.items()
        if left.get(name) != value
    }
    assert not changed, f"the tests of this module left this changed: {changed}"


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """Undo what the command's options -q and -v set in a test."""
    logger, last_resort = logging.getLogger("stars_engine"), logging.lastResort
    level = logger.level
    yield
    logger.setLevel(level)
    logging.lastResort = last_resort


@pytest.fixture(scope="session")
def engine() -> StarsEngine:
    """The embedded pair, loaded once. "auto" would follow the measured speed."""
    config = StarsConfig()
    return StarsEngine(config.replace(align=config.align.replace(num_candidates=4))).load()


@pytest.fixture(scope="session")
def tokenizer(engine: StarsEngine) -> object:
    """The tokenizer of the embedded pair."""
    return engine.model.codec.tokenizer


@pytest.fixture(scope="session")
def tinystories() -> TransformersBackend:
    from stars_engine.backends.transformers import TransformersBackend

    return TransformersBackend(TransformersModel(name_or_path=shared_model("TinyStories-656K")))


@pytest.fixture(scope="session")
def stories260k() -> TransformersBackend:
    from stars_engine.backends.transformers import TransformersBackend

    return TransformersBackend(TransformersModel(name_or_path=shared_model("stories260K")))


@pytest.fixture(scope="session")
def imdb_engine() -> StarsEngine:
    """A shared language model with the reward model that has its tokenizer."""
    config = StarsConfig(
        model=shared_model("imdb-lm-656K"),
        reward=shared_model("rm-sentiment-656K"),
        align=AlignParams(
            schedule={"kind": "linear", "initial": 0.0, "target": 1.0},
            beta=0.3,
            segment_len=8,
            num_candidates=4,
        ),
        sampling=SamplingParams(max_tokens=40),
    )
    return StarsEngine(config).load()


@pytest.fixture(scope="session")
def schedule(engine: StarsEngine) -> CalibratedSchedule:
    """Thresholds that a calibration found for the embedded pair."""
    return calibrate(engine, OPENINGS, target_acceptance=0.4, seed=4, **QUICK)


@pytest.fixture(scope="session")
def borders(engine: StarsEngine) -> list[RewardInput]:
    """Inputs of a reward at more than 400 real segment ends."""
    from tests.support.rewards import real_borders

    return real_borders(engine)


@pytest.fixture(scope="session")
def qwen_tokenizer(borders: list[RewardInput]) -> PreTrainedTokenizerFast:
    """Like that of Qwen2.5-Math-PRM: a begin token that is never added, and a step marker."""
    from tests.support.rewards import CHATML, byte_tokenizer

    return byte_tokenizer(
        [item.text for item in borders],
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"],
        template=CHATML,
        bos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture(scope="session")
def qwen(qwen_tokenizer: PreTrainedTokenizerFast) -> Qwen2ForTokenClassification:
    """A small process reward model."""
    from transformers import Qwen2Config, Qwen2ForTokenClassification

    from tests.support.rewards import small

    return small(Qwen2ForTokenClassification, Qwen2Config, qwen_tokenizer, num_labels=2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let no garbage collection search the libraries that tests import, again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spare the garbage collector the large libraries, which stay in any case."""
    gc.collect()
    gc.freeze()
