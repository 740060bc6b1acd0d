"""Settings of the acceptance test: how segments are cut, scored and accepted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from stars_engine.config.alternatives import Alternative
from stars_engine.config.preset_fields import preset_fields
from stars_engine.config.sampling import SamplingParams
from stars_engine.nesting import is_json
from stars_engine.schedules import AutoSchedule, CalibratedSchedule, Schedule
from stars_engine.schema import Schema


class AlignParams(Schema):
    """The acceptance test of segments (arXiv 2511.03827).

    `segment_end="entropy"` ends a candidate before the first token, from `min_segment_len` tokens
    on, whose distribution has an entropy of `max_entropy` or more, as CARDS does (arXiv
    2406.16306). It is a stopping rule like the following.

    `segment_end="sentence"` is a stopping rule: a candidate ends at the first token, from
    `min_segment_len` on, after which its text ends a sentence (`text.ends_sentence`), and otherwise
    at `segment_len`. Whether it ends after a token depends only on the tokens so far. Candidates
    are therefore draws from one proposal over segments of several lengths, and the law of a segment
    holds unchanged. (Drafting on and cutting at the *last* boundary would not be such a rule,
    because later tokens would then select the kept ones.)

    `lookahead` changes what is scored, not what is kept. The reward of a candidate is that of the
    completion with the candidate and its greedy continuation, which is a function of the candidate,
    so the law of a segment holds with these rewards. The reward of a prefix is the one with which
    its last segment was kept.

    `alternatives` changes what is proposed: each draw comes from the plain prompt or from one of
    them, chosen with the probabilities of their shares. The law of a segment holds with this
    mixture as the proposal.
    """

    schedule: Schedule | None = Field(
        default=None,
        description="thresholds; None uses the shipped thresholds for the embedded pair, and "
        "AutoSchedule() for other models",
        examples=[{"kind": "linear", "target": 8.0, "initial_weight": 0.5}],
    )
    beta: float = Field(
        default=0.0,
        ge=0,
        description="acceptance softness in reward units: a = min(1, exp((r - threshold) / beta)); "
        "0 accepts iff r >= threshold; not the LM's temperature",
        examples=[0.7],
    )
    segment_len: int = Field(
        default=32, ge=1, description="tokens that are drafted and scored together", examples=[32]
    )
    segment_end: Literal["length", "sentence", "entropy"] = Field(
        default="length",
        description="where a segment ends: after segment_len tokens, or earlier at the first end "
        "of a sentence, or before the first token that the model is uncertain about",
        examples=["sentence"],
    )
    min_segment_len: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="minimum tokens before a sentence or an uncertain token may end the segment, "
        "at most segment_len; not with segment_end='length'; None means a quarter of segment_len",
        examples=[8],
    )
    max_entropy: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="entropy of the model's next token from which a segment ends before it, in "
        "nats, at temperature 1 and without filters; required with segment_end='entropy'",
        examples=[3.0],
    )
    lookahead: int = Field(
        default=0,
        ge=0,
        description="tokens of greedy continuation that the reward model reads after each "
        "candidate; they are never kept; only with segment_end='length'",
        examples=[16],
    )
    judge: Literal["answer", "all"] = Field(
        default="answer",
        description="'answer': reasoning, tool calls and grammar-constrained JSON are unscored "
        "spans, which are kept without a test and which the reward model does not read; 'all': "
        "everything is scored",
    )
    max_attempts: int = Field(
        default=20,
        ge=1,
        description="maximum draws per segment, including the first",
        examples=[20],
    )
    on_exhausted: Literal["best", "last", "stop", "raise", "fallback"] = Field(
        default="best",
        description="if no draw is accepted: keep the best or last draw, end before this segment, "
        "raise AlignmentError, or end with fallback_text",
    )
    fallback_text: str | None = Field(
        default=None,
        description="text appended to the accepted segments if on_exhausted is 'fallback'",
        examples=["I'd rather not go on."],
    )
    terminal: Literal["schedule", "target"] | float = Field(
        default="schedule",
        description="threshold for a candidate that ends the answer: that of the schedule, the "
        "schedule's target, or a number",
        examples=["target"],
    )
    max_drafted_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="maximum drafted tokens; the answer then ends with the accepted segments",
        examples=[2048],
    )
    deadline_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="seconds; the answer then ends with the accepted segments: after the current "
        "step, or a tenth of a second later if the step lasts longer",
        examples=[10.0],
    )
    num_candidates: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="candidates drafted per step; 'auto' chooses the fastest number from the "
        "acceptance so far and the measured cost of steps, at most 4 if the reward is a function; "
        "affects speed, never the text",
        examples=[4],
    )
    keep_rejected_text: bool = Field(
        default=False, description="record the text of rejected draws in the result"
    )
    alternatives: tuple[Alternative, ...] = Field(
        default=(),
        description="other system messages, prefaces or openings from which some draws are "
        "proposed; shares add up to at most 1, and the plain prompt has the rest",
        examples=[[{"system": "Decline harmful requests politely.", "share": 0.25}]],
    )

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        """Start from the preset that is named, as in `AlignParams(preset="guard")`."""
        if not isinstance(values, dict) or "preset" not in values:
            return values
        own = {name: value for name, value in values.items() if name != "preset"}
        return preset_fields(values["preset"], own)

    @model_validator(mode="before")
    @classmethod
    def _carried_by_calibration(cls, values: Any) -> Any:
        """Take the settings that a calibrated schedule was made for, unless given here."""
        schedule = values.get("schedule") if isinstance(values, dict) else None
        if isinstance(schedule, Mapping) and schedule.get("kind") == "calibrated":
            schedule = CalibratedSchedule.model_validate(schedule)
        if not isinstance(schedule, CalibratedSchedule):
            return values
        return {**schedule.carried, **values, "schedule": schedule}

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy; a calibrated schedule brings the settings it was made for.

        A schedule that replaces a calibrated one does not inherit these settings.
        """
        old, new = self.schedule, changes.get("schedule", self.schedule)
        if isinstance(new, CalibratedSchedule):
            if new != old:
                changes = {**new.carried, **changes}
            return super().replace(**changes)
        if not isinstance(old, CalibratedSchedule):
            return super().replace(**changes)
        brought = old.carried
        own = {
            name: getattr(self, name)
            for name in self.model_fields_set
            if name not in brought or getattr(self, name) != brought[name]
        }
        return type(self)(**{**own, **changes})

    @field_validator("fallback_text")
    @classmethod
    def _fallback_is_text(cls, text: str | None) -> str | None:
        return None if text is None else str(is_json(text, "fallback_text"))

    @field_validator("beta")
    @classmethod
    def _beta_not_nan(cls, beta: float) -> float:
        if math.isnan(beta):
            raise ValueError(
                "allowed: a number >= 0, or inf. Hint: use beta=0 for strict thresholds"
            )
        return beta

    @field_validator("terminal")
    @classmethod
    def _terminal_not_nan(cls, terminal: str | float) -> str | float:
        if isinstance(terminal, float) and math.isnan(terminal):
            raise ValueError(
                "allowed: 'schedule', 'target' or a number. Hint: use terminal='schedule'"
            )
        return terminal

    @model_serializer(mode="wrap")
    def _without_what_is_left_to_auto(self, handler: SerializerFunctionWrapHandler) -> Any:
        """Omit values that an `AutoSchedule` will choose; in a file they would be settings."""
        values = handler(self)
        if isinstance(self.schedule, AutoSchedule):
            for name in {"segment_len", "beta"} - self.model_fields_set:
                values.pop(name, None)
        return values

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Omit values that are not chosen yet, because the defaults shown would be wrong."""
        left = {"segment_len", "beta"} - self.model_fields_set
        open_ = self.schedule is None or isinstance(self.schedule, AutoSchedule)
        for name, value in super().__repr_args__():
            if not (open_ and name in left):
                yield name, value

    @model_validator(mode="after")
    def _auto_agrees(self) -> Self:
        auto = self.schedule
        if not isinstance(auto, AutoSchedule):
            return self
        own = self.model_fields_set
        if "segment_len" in own and auto.segment_len not in ("auto", self.segment_len):
            raise ValueError(
                f"segment_len={self.segment_len} and AutoSchedule(segment_len="
                f"{auto.segment_len}) differ. Hint: give one of them"
            )
        if auto.relative_beta is not None and "beta" in own:
            raise ValueError(
                f"beta={self.beta} and AutoSchedule(relative_beta={auto.relative_beta}) both set "
                "the acceptance softness. Hint: give one of them"
            )
        if auto.target[0] == "budget" and auto.target[1] >= self.max_attempts:
            raise ValueError(
                f"AutoSchedule(budget={auto.target[1]}) is not below max_attempts="
                f"{self.max_attempts}. Hint: raise max_attempts, or lower the budget"
            )
        return self

    def judges_none_of(self, sampling: SamplingParams) -> bool:
        """Whether no segment is scored, because the answer is grammar-constrained JSON."""
        grammar = sampling.grammar
        return self.judge == "answer" and grammar is not None and grammar.kind == "json"

    @property
    def shortest_segment(self) -> int:
        """Minimum tokens before a sentence or an uncertain token may end the segment."""
        if self.min_segment_len is not None:
            return self.min_segment_len
        return max(1, self.segment_len // 4)

    @property
    def row_len(self) -> int:
        """Maximum tokens drafted for one candidate."""
        return self.segment_len + self.lookahead

    @model_validator(mode="after")
    def _segment_ends_once(self) -> Self:
        shortest = self.min_segment_len
        if self.segment_end == "length" and shortest is not None:
            raise ValueError(
                f"min_segment_len={shortest} needs segment_end='sentence' or 'entropy', but "
                "segment_end is 'length'. Hint: set segment_end='sentence' or 'entropy', or leave "
                "min_segment_len out"
            )
        if (self.segment_end == "entropy") != (self.max_entropy is not None):
            raise ValueError(
                f"segment_end={self.segment_end!r} and max_entropy={self.max_entropy}: max_entropy "
                "is required with segment_end='entropy', and only allowed there. Hint: "
                "segment_end='entropy', max_entropy=3.0"
            )
        if shortest is not None and shortest > self.segment_len:
            raise ValueError(
                f"min_segment_len={shortest} is above segment_len={self.segment_len}; allowed: 1 "
                f"to {self.segment_len}. Hint: lower it, or raise segment_len"
            )
        if self.segment_end != "length" and self.lookahead:
            raise ValueError(
                f"lookahead={self.lookahead} does not support segment_end={self.segment_end!r}, "
                "because the end of the segment is known only after drafting. Hint: use "
                "segment_end='length' with lookahead, or lookahead=0"
            )
        return self

    @model_validator(mode="after")
    def _alternatives_fit(self) -> Self:
        total = math.fsum(each.share for each in self.alternatives)
        if total > 1 + 1e-9:
            raise ValueError(
                f"the shares of alternatives add up to {total:g}; allowed: at most 1. Hint: lower "
                "them; the plain prompt has what is left"
            )
        if self.lookahead and any(each.has_prompt and each.share for each in self.alternatives):
            raise ValueError(
                f"lookahead={self.lookahead} does not support alternatives with another prompt, "
                "because the lookahead would continue that prompt, which the reward model does not "
                "see. Hint: use alternatives with an opening alone, or lookahead=0"
            )
        return self

    @model_validator(mode="after")
    def _fallback_has_text(self) -> Self:
        if (self.on_exhausted == "fallback") != (self.fallback_text is not None):
            raise ValueError(
                f"on_exhausted={self.on_exhausted!r} and fallback_text={self.fallback_text!r}: "
                "fallback_text is required with on_exhausted='fallback', and only allowed there. "
                "Hint: set both, or neither"
            )
        return self
