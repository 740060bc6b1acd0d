"""Requests for rewards, and how they are split among the parts of a composite reward.

A `RewardRequest` asks for the reward of one completion. Its outcome arrives immediately or later.
A request to a composite reward becomes one request for each part; the composite replies when the
last part has replied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeGuard

from stars_engine.errors import RewardOutcome, is_for_program
from stars_engine.protocols import has_members
from stars_engine.rewards.base import RewardModel, describe, score_each
from stars_engine.rewards.failures import failure
from stars_engine.types import RewardInput

if TYPE_CHECKING:
    from stars_engine.hidden_states.probes import Probe


class Requester(Protocol):
    """The owner of reward requests. Requests of one requester may share a call."""

    @property
    def closed(self) -> bool:
        """Whether the requester no longer needs outcomes."""


@dataclass(frozen=True, slots=True, eq=False)
class RewardRequest:
    """A request for the reward of one completion.

    Attributes:
        input: Prompt and completion.
        reply: Called with the outcome, on the thread that made the request; only the first call
            counts.
        requester: The owner of the request.
    """

    input: RewardInput
    reply: Callable[[RewardOutcome], None]
    requester: Requester


class RoutedRequest(NamedTuple):
    """A reward request and the reward model that it is for."""

    reward: RewardModel
    request: RewardRequest


class GatheringReward(RewardModel, Protocol):
    """A reward model that combines the rewards of others."""

    def divide(self, request: RewardRequest) -> Sequence[RoutedRequest]:
        """Return the requests to the parts; `request` is answered when all of them are."""

    def models(self) -> Sequence[RewardModel]:
        """Return the parts."""


def gathers(reward: RewardModel) -> TypeGuard[GatheringReward]:
    """Return whether a reward model implements `GatheringReward`."""
    return has_members(reward, GatheringReward)


def split_composites(routed: Iterable[RoutedRequest]) -> list[RoutedRequest]:
    """Replace requests to composite rewards with requests to their parts.

    A request that its composite fails to divide is answered with the error.
    """
    return [part for item in routed for part in _divided(item)]


def _divided(item: RoutedRequest) -> list[RoutedRequest]:
    reward, request = item
    if not gathers(reward):
        return [item]
    try:
        return [_guarded(item, RoutedRequest(*part)) for part in reward.divide(request)]
    except BaseException as error:  # reward models are third-party code
        if is_for_program(error):
            raise
        request.reply(failure(describe(reward), error))
        return []


def _guarded(whole: RoutedRequest, part: RoutedRequest) -> RoutedRequest:
    """Return a part whose reply answers the whole request with the error if it fails."""
    asked, reply = part.request.input, part.request.reply

    def answer(outcome: RewardOutcome) -> None:
        try:
            reply(outcome)
        except BaseException as error:  # composites may be third-party code
            if is_for_program(error):
                raise
            whole.request.reply(failure(describe(whole.reward), error))

    return RoutedRequest(part.reward, RewardRequest(asked, answer, whole.request.requester))


def single_models(reward: RewardModel) -> Sequence[RewardModel]:
    """Return the parts of a composite; the reward model itself if it has none, or fails."""
    if not gathers(reward):
        return [reward]
    try:
        return list(reward.models())
    except BaseException as error:  # reward models are third-party code
        if is_for_program(error):
            raise
        return [reward]


def probes_of(reward: RewardModel) -> tuple[Probe, ...]:
    """Return the probes whose features a reward model reads, those of its parts included."""
    found = (getattr(part, "probe", None) for part in single_models(reward))
    return tuple(probe for probe in found if probe is not None)


def score_now(routed: Sequence[RoutedRequest]) -> None:
    """Score requests on the current thread, one batch per reward model."""
    for reward, requests in by_reward(routed):
        answers = score_each(reward, [request.input for request in requests])
        for request, answer in zip(requests, answers, strict=True):
            request.reply(answer)


def by_reward(routed: Iterable[RoutedRequest]) -> Iterator[tuple[RewardModel, list[RewardRequest]]]:
    """Group requests by reward model, in order of first appearance."""
    groups: dict[int, tuple[RewardModel, list[RewardRequest]]] = {}
    for reward, request in routed:
        groups.setdefault(id(reward), (reward, []))[1].append(request)
    yield from groups.values()
