"""Config objects of reward models that vLLM runs in this process."""

from __future__ import annotations

from typing import Literal

from stars_engine.config.rewards.answers import ClassifiesAnswers
from stars_engine.config.rewards.common import Failing
from stars_engine.config.vllm import VLLMCheckpoint


class VLLMReward(ClassifiesAnswers, Failing, VLLMCheckpoint):
    """A sequence classifier that vLLM runs in this process."""

    kind: Literal["vllm"] = "vllm"
