"""Thresholds that the engine calibrates itself, once, before the first answer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stars_engine.schedules.base import BaseSchedule, Progress
from stars_engine.schedules.calibrated import OnUntrusted

DEFAULT_BUDGET = 2.7  # drafted over kept tokens, which is an acceptance near 0.5


class AutoSchedule(BaseSchedule):
    """Lets the engine calibrate thresholds for its models when it first needs them.

    Set at most one target; the default is a budget of 2.7. The calibration runs once and logs that
    it does. Its result is cached on disk for the same models and settings.
    """

    hints: ClassVar[dict[str, str]] = {
        "beta": "use relative_beta, the softness over the standard deviation of drafts' rewards; a "
        "beta in reward units belongs in AlignParams(beta=...)."
    }

    kind: Literal["auto"] = "auto"
    budget: Annotated[float, Field(gt=1)] | None = Field(
        default=None, description="drafted tokens over kept tokens", examples=[2.7]
    )
    target_acceptance: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="acceptance probability of a segment's first draft",
        examples=[0.3],
    )
    target_forced: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="share of segments without an accepted draw", examples=[0.05]
    )
    segment_len: int | Literal["auto"] = Field(
        default="auto",
        description="tokens judged together; auto: AlignParams.segment_len if set, else 8 for a "
        "reward model that reads the language model's token ids, 16 for others",
        examples=[16],
    )
    relative_beta: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="acceptance softness over the standard deviation of drafts' rewards; None: "
        "AlignParams.beta",
        examples=[0.2],
    )
    prompts: tuple[str, ...] | None = Field(
        default=None,
        description="pilot prompts, at least 8, similar to those of later use; None: a neutral set "
        "from the package",
        repr=False,
    )
    on_untrusted: OnUntrusted | Literal["ignore"] = Field(
        default="warn",
        description="what calls do if the reward of unfinished text says too little of the whole "
        "answer: warn (log it once, and go on), best_of_n (sample whole answers for the same "
        "budget, and return the best), raise, or ignore (do not measure it)",
        examples=["best_of_n"],
    )
    num_prompts: int = Field(
        default=96, ge=8, description="maximum number of pilot prompts", examples=[96]
    )
    seed: int = Field(default=0, ge=0, description="seed of the pilot")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"more than one target is set: {', '.join(given)}. Hint: keep one")
        if self.segment_len != "auto" and self.segment_len < 1:
            raise ValueError(
                f"segment_len={self.segment_len} is not allowed. Hint: use 'auto' or 1 or more"
            )
        if self.prompts is not None and len(self.prompts) < 8:
            raise ValueError(
                f"{len(self.prompts)} prompts are too few for a pilot. Hint: give at least 8"
            )
        if self.prompts is not None and len(set(self.prompts)) == 1:
            raise ValueError(
                f"all {len(self.prompts)} prompts are {self.prompts[0]!r}, which predicts nothing "
                "about others. Hint: give prompts similar to those of later use. To calibrate for "
                "a single prompt, use stars_engine.calibrate"
            )
        return self

    @property
    def target(self) -> tuple[str, float]:
        """The target's name and value."""
        for name in TARGETS:
            value = getattr(self, name)
            if value is not None:
                return name, float(value)
        return "budget", DEFAULT_BUDGET

    def threshold(self, progress: Progress) -> float:
        """Not called: the engine replaces this schedule by a `CalibratedSchedule`."""
        raise AssertionError("an AutoSchedule is replaced before any segment is judged")

    def final_threshold(self, progress: Progress) -> float:
        """Not called; see `threshold`."""
        return self.threshold(progress)


TARGETS = ("budget", "target_acceptance", "target_forced")
