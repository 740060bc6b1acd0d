"""vLLM in this process: the contracts of models and rewards. Needs an environment with vLLM.

`STARS_TEST_LM` and `STARS_TEST_REWARD` are directories with an instruct model and a classifier.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    MissingExtraError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    VLLMModel,
    VLLMReward,
)
from stars_engine.testing import check_backend, check_reward_model

HAS_VLLM = find_spec("vllm") is not None and "STARS_TEST_LM" in os.environ
ARGUMENTS = {"enforce_eager": True, "block_size": 32, "max_num_batched_tokens": 8192}


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_the_extra_is_named() -> None:
    align = AlignParams(schedule=ConstantSchedule(value=0.0))
    config = StarsConfig(
        model=VLLMModel(name_or_path="stars:embedded-lm"),
        reward="stars:embedded-reward",
        align=align,
    )
    with StarsEngine(config) as engine, pytest.raises(MissingExtraError, match=r"vllm"):
        engine.load()


@pytest.mark.servers
@pytest.mark.skipif(not HAS_VLLM, reason="no vLLM, or no models")
def test_contracts_and_texts() -> None:
    options = {"dtype": "float32", "context_len": 1024, "engine_kwargs": ARGUMENTS}
    config = StarsConfig(
        model=VLLMModel(name_or_path=os.environ["STARS_TEST_LM"], **options),
        reward=VLLMReward(name_or_path=os.environ["STARS_TEST_REWARD"], **options),
        align=AlignParams(
            schedule=ConstantSchedule(value=0.0), beta=0.5, segment_len=16, num_candidates=2
        ),
        sampling=SamplingParams(max_tokens=32, seed=3),
    )
    with StarsEngine(config) as engine:
        check_backend(engine.model, [[1], [504, 33059, 260], [2, 1, 3, 40]])
        check_reward_model(engine.reward)
        prompts = ["Name three colours.", "Hi!"]
        together = engine.generate(prompts)
        alone = [engine.generate(prompt)[0] for prompt in prompts]
        assert [item.token_ids for item in together] == [item.token_ids for item in alone]
