"""A weighted sum of rewards; each part is scored as it would be alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from stars_engine.config import CompositeReward
from stars_engine.errors import RewardError, RewardOutcome
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.reward_requests import RewardRequest, RoutedRequest, score_now
from stars_engine.types import RewardInput, Score


class CompositeRewardModel:
    """The sum of weight * (r - mean) / std over the parts.

    A veto by one part vetoes the candidate. A part that is not finite makes the sum not finite,
    which rejects the candidate. A part that fails follows its own failure policy.

    Args:
        config: Weights and floors.
        parts: The reward model of each part, by its name in `config.parts`.
    """

    def __init__(self, config: CompositeReward, parts: Mapping[str, RewardModel]) -> None:
        self._config = config
        self._parts = dict(parts)
        self.name = f"composite of {', '.join(parts)}"

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`; scores the parts on this thread, one after another.

        Raises:
            RewardError: A part failed.
        """
        answers: dict[int, RewardOutcome] = {}
        routed: list[RoutedRequest] = []
        for index, item in enumerate(inputs):
            routed += self.divide(
                RewardRequest(item, partial(answers.__setitem__, index), _OpenRequester())
            )
        score_now(routed)
        scores = []
        for index in range(len(inputs)):
            answer = answers[index]
            if isinstance(answer, RewardError):
                raise answer
            scores.append(answer)
        return scores

    def divide(self, request: RewardRequest) -> list[RoutedRequest]:
        """See `GatheringReward`."""
        answers: dict[str, RewardOutcome] = {}

        def note(name: str, answer: RewardOutcome) -> None:
            if name not in answers:
                answers[name] = answer
                if len(answers) == len(self._parts):
                    request.reply(self._combine(answers))

        return [
            RoutedRequest(
                reward, RewardRequest(request.input, partial(note, name), request.requester)
            )
            for name, reward in self._parts.items()
        ]

    def models(self) -> list[RewardModel]:
        """See `GatheringReward`."""
        return list(self._parts.values())

    def named_models(self) -> dict[str, RewardModel]:
        """Return the parts by name."""
        return dict(self._parts)

    def _combine(self, answers: Mapping[str, RewardOutcome]) -> RewardOutcome:
        """Return the sum, or the error of the first part that failed."""
        scores: dict[str, Score] = {}
        for name in self._parts:
            answer = answers[name]
            if isinstance(answer, RewardError):
                return _named(name, answer)
            scores[name] = answer
        vetoed = False
        total = 0.0
        for name, score in scores.items():
            part = self._config.parts[name]
            total += part.standardised(score.value)
            vetoed |= score.vetoed or (part.floor is not None and score.value < part.floor)
        floor = self._config.floor
        return Score(
            # Infinities of both signs add up to nan, which rejects as well.
            total,
            vetoed=vetoed or (floor is not None and total < floor),
            num_tokens=sum(score.num_tokens for score in scores.values()),
            failed=any(score.failed for score in scores.values()),
            truncated=any(score.truncated for score in scores.values()),
            parts={name: None if s.failed else s.value for name, s in scores.items()},
        )


def _named(part: str, error: RewardError) -> RewardError:
    """Name the part in its error; the reward's own name may not be unique, like <lambda>."""
    named = RewardError(f"part {part!r} of the composite: {error}")
    named.__cause__ = error.__cause__
    return named


class _OpenRequester:
    """A requester that never closes."""

    closed = False
