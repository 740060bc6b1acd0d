"""Questions to reward models, and to the parts of composite ones.

Whoever wants a reward asks a question and is told the answer, at once or later. A question to a
composite becomes one to each of its parts; its own answer follows the last of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from stars_engine.rewards.base import RewardModel, score_each
from stars_engine.types import RewardInput, RewardOutcome


class Asker(Protocol):
    """Who asks; questions of one asker may go into one call.

    Attributes:
        closed: Whether further answers are of no use.
    """

    closed: bool


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What one reward is asked of, and whom to tell.

    Attributes:
        input: Prompt and completion.
        reply: Told the answer, on the thread that asked; only the first one counts.
        asker: Whose question it is.
    """

    input: RewardInput
    reply: Callable[[RewardOutcome], None]
    asker: Asker


class Asked(NamedTuple):
    """A question and the reward model it is for."""

    reward: RewardModel
    question: Question


@runtime_checkable
class GatheringReward(RewardModel, Protocol):
    """A reward model that asks others and puts their answers together."""

    def divide(self, question: Question) -> Sequence[Asked]:
        """Return the questions to its parts; it replies when all are answered."""
        ...

    def models(self) -> Sequence[RewardModel]:
        """Return its parts."""
        ...


def spread(asked: Iterable[Asked]) -> list[Asked]:
    """Put questions to the parts in place of those to their composites."""
    return [
        part
        for item in asked
        for part in (
            item.reward.divide(item.question)
            if isinstance(item.reward, GatheringReward)
            else [item]
        )
    ]


def single_models(reward: RewardModel) -> Sequence[RewardModel]:
    """Return the parts of a composite, or the reward model itself."""
    return reward.models() if isinstance(reward, GatheringReward) else [reward]


def answer_now(asked: Sequence[Asked]) -> None:
    """RewardOutcome questions on this thread, all of one reward model in one batch."""
    for reward, questions in by_reward(asked):
        answers = score_each(reward, [question.input for question in questions])
        for question, answer in zip(questions, answers, strict=True):
            question.reply(answer)


def by_reward(asked: Iterable[Asked]) -> Iterator[tuple[RewardModel, list[Question]]]:
    """Group questions by the reward model they are for, in the order of the first."""
    groups: dict[int, tuple[RewardModel, list[Question]]] = {}
    for reward, question in asked:
        groups.setdefault(id(reward), (reward, []))[1].append(question)
    yield from groups.values()
