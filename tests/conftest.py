"""Models and helpers that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForTokenClassification

from stars_engine import (
    AlignParams,
    CalibratedSchedule,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    calibrate,
)
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.algorithm.rollout import Rollout
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import TransformersModel
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.calibration import OPENINGS, QUICK
from tests.support.rewards import CHATML, byte_tokenizer, real_borders, small

SHARED = Path(os.environ.get("STARS_SHARED", Path(__file__).parents[2] / "shared"))

# Small matrices: two threads only wait for each other.
torch.set_num_threads(1)


def shared_model(name: str) -> str:
    """Return the directory of a real small model, or skip where there is none."""
    return str(_shared("models", name))


def shared_data(name: str) -> Path:
    """Return a file or folder of real data, or skip where there is none."""
    return _shared("data", name)


def _shared(kind: str, name: str) -> Path:
    path = SHARED / kind / name
    if not path.exists():
        pytest.skip(f"{name} is not here: set STARS_SHARED to a folder with {kind}/{name}")
    return path


@pytest.fixture(scope="session")
def engine() -> StarsEngine:
    """The embedded pair, loaded once."""
    return StarsEngine().load()


@pytest.fixture(scope="session")
def tokenizer(engine: StarsEngine) -> object:
    """The embedded pair's."""
    return engine.model.codec.tokenizer


@pytest.fixture(scope="session")
def tinystories() -> TransformersBackend:
    return TransformersBackend(TransformersModel(name_or_path=shared_model("TinyStories-656K")))


@pytest.fixture(scope="session")
def stories260k() -> TransformersBackend:
    return TransformersBackend(TransformersModel(name_or_path=shared_model("stories260K")))


@pytest.fixture(scope="session")
def imdb_engine() -> StarsEngine:
    """A shared language model with the reward model that has its tokenizer."""
    config = StarsConfig(
        model=shared_model("imdb-lm-656K"),
        reward=shared_model("rm-sentiment-656K"),
        align=AlignParams(
            schedule={"kind": "linear", "initial": 0.0, "target": 1.0}, beta=0.3, segment_len=8
        ),
        sampling=SamplingParams(max_tokens=40),
    )
    return StarsEngine(config).load()


def make_rollout(
    prompt_ids: Sequence[int] = (1,),
    *,
    align: AlignParams | None = None,
    sampling: SamplingParams | None = None,
    noise: object = None,
    seed: int = 0,
    sample_index: int = 0,
) -> Rollout:
    """A rollout as the engine would make it."""
    return Rollout(
        prompt_ids=tuple(prompt_ids),
        reward_prompt=RewardPrompt("", tuple(prompt_ids)),
        sampling=sampling or SamplingParams(temperature=1.0, top_k=None),
        align=align or AlignParams(schedule=NoSchedule(), num_candidates=4),
        noise=noise or CounterNoise(seed=seed, prompt_ids=prompt_ids, sample_index=sample_index),
        seed=seed,
        sample_index=sample_index,
    )


@pytest.fixture(scope="session")
def schedule(engine: StarsEngine) -> CalibratedSchedule:
    """Thresholds that a calibration found for the embedded pair."""
    return calibrate(engine, OPENINGS, target_acceptance=0.4, seed=4, **QUICK)


@pytest.fixture(scope="session")
def borders(engine: StarsEngine) -> list[RewardInput]:
    """What a reward is asked of at more than 400 real segment borders."""
    return real_borders(engine)


@pytest.fixture(scope="session")
def qwen_tokenizer(borders: list[RewardInput]) -> PreTrainedTokenizerFast:
    """As of Qwen2.5-Math-PRM: a begin-of-text token that is never added by itself, a marker."""
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
    return small(Qwen2ForTokenClassification, Qwen2Config, qwen_tokenizer, num_labels=2)


PROMPT = "The acting in this movie"
SETTINGS = {"max_tokens": 32, "seed": 7}


@pytest.fixture(scope="module")
def one_runtime() -> Iterator[None]:
    """The embedded pair, loaded once for all adapters of a module."""
    with StarsEngine.shared() as keeper:
        yield
        assert keeper.stats().num_loads == 1


@pytest.fixture(scope="module")
def expected(engine: StarsEngine) -> str:
    """What adapters with `SETTINGS` answer to `PROMPT`."""
    return engine.generate(PROMPT, sampling=SamplingParams(**SETTINGS))[0].text
