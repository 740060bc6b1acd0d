"""Estimates of the probability that a draw is accepted, from earlier draws."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

_PRIOR = 3.0  # weight of the prior, in draws
_SURPRISE = 1.0  # weight of the prior that an answer is like others, in accepted draws
_FADING = 0.85  # weight of a segment of the answer, relative to the segment after it
_MEMORY = 200.0  # effective number of draws that one segment index remembers
_MOST_SETTINGS = 64  # settings remembered; the least recently used are dropped
_NUM_SINGLE = 8  # segment indices with their own estimate; later ones share powers of two
_LEAST, _MOST = 1e-3, 0.99  # bounds of an estimate


class SegmentDraws(NamedTuple):
    """Draws of one segment of an answer.

    Attributes:
        segment_index: Index of the segment, from 0.
        num_draws: Number of judged draws.
        accepted: Whether the last draw was accepted.
    """

    segment_index: int
    num_draws: int
    accepted: bool


class AcceptanceEstimates:
    """Posterior acceptance probabilities, by settings and segment index.

    Thresholds rise with the index, so acceptance falls. Each index has a Beta posterior whose prior
    mean is the estimate of the index before it. The prior of the first index is the acceptance
    under all other settings, whose own prior is 1/3.
    """

    def __init__(self) -> None:
        self._total = _Counts()
        self._profiles: OrderedDict[Hashable, _Profile] = OrderedDict()

    def note(self, settings: Hashable, draws: SegmentDraws) -> None:
        """Record the draws of a finished segment."""
        profile = self._profiles.setdefault(settings, _Profile())
        self._profiles.move_to_end(settings)
        profile.note(draws)
        self._total.add(draws)
        if len(self._profiles) > _MOST_SETTINGS:
            self._profiles.popitem(last=False)

    def acceptance(self, settings: Hashable, history: Sequence[SegmentDraws]) -> float:
        """Return the probability that the next draw is accepted.

        The estimate over all answers is multiplied by a factor for this answer: its accepted draws
        over the expected number, with a Gamma prior around 1.

        Args:
            settings: A key that is equal for answers with the same test.
            history: The latest segments of the answer, in order. The last is the current one, of
                which no draw was accepted.
        """
        profile = self._profiles.get(settings) or _Profile()
        got = expected = _SURPRISE
        weight = 1.0
        for draws in reversed(history):
            got += weight * draws.accepted
            expected += weight * draws.num_draws * profile.rate(draws.segment_index, self._total)
            weight *= _FADING
        usual = profile.rate(history[-1].segment_index, self._total)
        return min(max(usual * got / expected, _LEAST), _MOST)


class _Counts:
    """Counts of draws and of accepted draws."""

    def __init__(self) -> None:
        self.num_draws = self.num_accepted = 0.0

    def add(self, draws: SegmentDraws) -> None:
        """Add draws."""
        self.num_draws += draws.num_draws
        self.num_accepted += draws.accepted

    def fade(self) -> None:
        """Reduce the weight of old draws."""
        share = min(1.0, _MEMORY / max(1.0, self.num_draws))
        self.num_draws *= share
        self.num_accepted *= share

    def rate(self, prior: float) -> float:
        """Return the posterior's mean."""
        return (self.num_accepted + _PRIOR * prior) / (self.num_draws + _PRIOR)


class _Profile:
    """Draws under one group of settings."""

    def __init__(self) -> None:
        self._total = _Counts()
        self._cells: list[_Counts] = []
        self._rates: list[float] = []

    def note(self, draws: SegmentDraws) -> None:
        """Record draws."""
        bucket = _bucket(draws.segment_index)
        while len(self._cells) <= bucket:
            self._cells.append(_Counts())
        self._cells[bucket].add(draws)
        self._cells[bucket].fade()
        self._total.add(draws)
        self._rates.clear()

    def rate(self, segment_index: int, total: _Counts) -> float:
        """Return the posterior mean; indices beyond the last one recorded use that one's.

        Args:
            segment_index: Index of the segment, from 0.
            total: Draws under all settings, read again after each `note`.
        """
        if not self._rates:
            elsewhere = _Counts()
            elsewhere.num_draws = total.num_draws - self._total.num_draws
            elsewhere.num_accepted = total.num_accepted - self._total.num_accepted
            self._rates.append(elsewhere.rate(1 / 3))
            for cell in self._cells:
                self._rates.append(cell.rate(self._rates[-1]))
        return self._rates[min(_bucket(segment_index) + 1, len(self._rates) - 1)]


def _bucket(index: int) -> int:
    """Return the bucket of a segment index: single indices first, then powers of two."""
    single = _NUM_SINGLE.bit_length()
    return index if index < _NUM_SINGLE else _NUM_SINGLE + index.bit_length() - single
