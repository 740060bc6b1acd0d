"""Config objects of reward models behind HTTP servers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from stars_engine.config.rewards.answers import ClassifiesAnswers
from stars_engine.config.rewards.common import Failing
from stars_engine.config.rewards.process import ScoresSteps
from stars_engine.config.rewards.yes_no import AsksYesNo
from stars_engine.config.servers import Server


class ServedReward(Failing, Server):
    """A reward model behind an HTTP server."""

    max_concurrency: int = Field(
        default=32, ge=1, description="maximum number of concurrent calls", examples=[32]
    )
    tolerance: float = Field(
        default=0.01,
        ge=0,
        allow_inf_nan=False,
        description="largest difference that is accepted as rounding when the start probe asks "
        "for the reward of the same text in different ways",
        examples=[0.05],
    )


class ServerReward(ClassifiesAnswers, ServedReward):
    """A sequence classifier behind an HTTP server: vLLM or SGLang."""

    kind: Literal["server"] = "server"
    endpoint: Literal["auto", "classify", "pooling", "sglang"] = Field(
        default="auto",
        description="how to ask for rewards: vLLM's /classify or /pooling, or SGLang's /classify; "
        "'auto' asks the server",
        examples=["pooling"],
    )


class ServerYesNoReward(AsksYesNo, ServedReward):
    """A causal language model behind a vLLM server as judge; see `YesNoReward`."""

    kind: Literal["server_yes_no"] = "server_yes_no"


class ServerProcessReward(ScoresSteps, ServedReward):
    """A process reward model behind a vLLM server, with a head for each token.

    See `ProcessReward`. The server needs `--runner pooling`.
    """

    kind: Literal["server_process"] = "server_process"

    @model_validator(mode="after")
    def _has_a_head(self) -> Self:
        if self.resolved().head != "classifier":
            raise ValueError(
                "head='tokens' reads the probabilities of two tokens at each marker, which servers "
                "do not return; use a model with head='classifier', or ProcessReward here"
            )
        return self
