"""Rewards of given texts: whole answers, and their beginnings segment by segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stars_engine.backends.base import PromptedModel
from stars_engine.chat.prompts import PromptFormat, resolve_prompt
from stars_engine.chat.template import TemplateKwargs
from stars_engine.config import EngineParams
from stars_engine.errors import PromptError
from stars_engine.messages import Chat
from stars_engine.runtime.limits import LONG_TEXT, check_num_answers, check_text, size_of
from stars_engine.threads.give_way import give_way
from stars_engine.types import Prompt, RewardInput, Score

_MAX_CHARS = 16_000_000  # of the beginnings of all answers of a call
_FEW_TEXTS = 64


@dataclass(frozen=True, slots=True)
class PartScore:
    """The reward of an answer up to the end of one segment.

    Attributes:
        text: Text of the segment.
        reward: Reward of the answer up to here.
        vetoed: Whether it is below a veto floor.
    """

    text: str
    reward: float
    vetoed: bool


@dataclass(frozen=True, slots=True)
class TextScore:
    """The reward of one given answer.

    Attributes:
        reward: Reward of the whole answer.
        vetoed: Whether it is below a veto floor.
        parts: The value of each part of a composite reward; None for other rewards.
        num_reward_tokens: Tokens that the reward model read.
        segments: Its segments, if asked.
    """

    reward: float
    vetoed: bool
    parts: Mapping[str, float | None] | None = None
    num_reward_tokens: int = 0
    segments: tuple[PartScore, ...] = ()


@dataclass(slots=True)
class ScoreCall:
    """One call: what to score, and which scores belong to which answer.

    Attributes:
        prompt: The prompt.
        texts: The answers.
        segment_len: Tokens of a segment; None scores only whole answers.
        prompt_format: How a string prompt is read.
        template_kwargs: Variables of the chat template.
        reward_prompt: Replaces the prompt for the reward model.
    """

    prompt: Prompt
    texts: Sequence[str]
    segment_len: int | None
    prompt_format: PromptFormat
    template_kwargs: TemplateKwargs
    reward_prompt: str | Chat | None
    _cuts: list[list[str]] = field(default_factory=list)  # by answer: its growing beginnings

    def check_size(self, params: EngineParams) -> None:
        """Check the limits of an engine.

        Raises:
            ConfigError: There are too many answers.
            PromptError: The prompt or an answer is too long.
        """
        check_num_answers(len(self.texts), params)
        check_text("the prompt", self.prompt, params)
        check_text("reward_prompt", self.reward_prompt, params)
        for index, text in enumerate(self.texts):
            if len(text) > params.max_prompt_chars:
                check_text(f"answer {index}", text, params)

    @property
    def is_large(self) -> bool:
        """Whether reading the inputs may take long."""
        num_chars = sum(map(len, self.texts))
        if self.segment_len is not None:
            num_chars *= 1 + num_chars // (4 * self.segment_len)
        num_chars += size_of(self.prompt) + size_of(self.reward_prompt)
        return len(self.texts) > _FEW_TEXTS or num_chars > LONG_TEXT

    def inputs(self, model: PromptedModel) -> list[RewardInput]:
        """Return all inputs of the reward model, in order.

        Raises:
            PromptError: The prompt or an answer cannot be read, or there are too many beginnings.
        """
        resolved = resolve_prompt(
            self.prompt,
            model.codec,
            prompt_format=self.prompt_format,
            template_kwargs=self.template_kwargs,
            reward_prompt=self.reward_prompt,
        )
        found = []
        num_chars = 0  # of beginnings
        for index, text in enumerate(self.texts):
            give_way()
            ids = tuple(_encoded(model, text, index))
            cuts = []
            for end in range(self.segment_len or len(ids), len(ids), self.segment_len or 1):
                beginning, num_ids = model.codec.completion_text(resolved.token_ids, ids[:end])
                num_chars += len(beginning)
                if num_chars > _MAX_CHARS:
                    raise PromptError(
                        f"the beginnings of answers 0 to {index} have more than {_MAX_CHARS} "
                        "characters. Hint: use a longer segment_len, or fewer or shorter answers"
                    )
                give_way()
                cuts.append(beginning)
                found.append(RewardInput(resolved.for_reward, beginning, ids[:num_ids]))
            cuts.append(text)
            found.append(RewardInput(resolved.for_reward, text, ids, finished=True))
            self._cuts.append(cuts)
        return found

    def results(self, scores: Sequence[Score]) -> list[TextScore]:
        """Return one result for each answer, from the scores of all inputs."""
        results, rest = [], iter(scores)
        for cuts in self._cuts:
            of_cuts = [next(rest) for _ in cuts]
            whole = of_cuts[-1]
            begins = ["", *cuts[:-1]]
            parts = tuple(
                PartScore(text.removeprefix(begin), score.value, score.vetoed)
                for begin, text, score in zip(begins, cuts, of_cuts, strict=True)
            )
            results.append(
                TextScore(
                    reward=whole.value,
                    vetoed=whole.vetoed,
                    parts=whole.parts,
                    num_reward_tokens=sum(score.num_tokens for score in of_cuts),
                    segments=parts if self.segment_len is not None else (),
                )
            )
        return results


def _encoded(model: PromptedModel, text: str, index: int) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"answer {index} contains a lone surrogate at index {error.start}, which is not a "
            "character. Hint: remove it"
        ) from None
    return model.codec.encode_continuation(text)
