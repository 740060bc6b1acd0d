"""How probable it is that a draw is accepted, judging by those before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

_PRIOR = 3.0  # draws that what is known from elsewhere counts for
_SURPRISE = 1.0  # acceptance before an answer is taken to differ from others by its own record
_FADING = 0.85  # what an earlier segment of it counts, against the next
_MEMORY = 200.0  # draws of one segment index that are remembered; those before them fade
_MOST_SETTINGS = 64  # remembered; those unused for longest are forgotten
_NUM_SINGLE = 8  # segment indices with an estimate of their own; the others in powers of two
_LEAST, _MOST = 1e-3, 0.99  # never certain of either


class SegmentDraws(NamedTuple):
    """Draws of one segment of an answer.

    Attributes:
        segment_index: The segment's, from 0.
        num_draws: Judged.
        accepted: Whether the last of them was accepted.
    """

    segment_index: int
    num_draws: int
    accepted: bool


class AcceptanceEstimates:
    """Posteriors of acceptance, by settings and segment index.

    Thresholds rise with the index, so acceptance falls. Each index is a Beta posterior over what
    the index before it comes to, the first over all that was seen under other settings, and that
    over one in three.
    """

    def __init__(self) -> None:
        self._total = _Counts()
        self._profiles: OrderedDict[Hashable, _Profile] = OrderedDict()

    def note(self, settings: Hashable, draws: SegmentDraws) -> None:
        """Take in the draws of a segment that is settled."""
        profile = self._profiles.setdefault(settings, _Profile())
        self._profiles.move_to_end(settings)
        profile.note(draws)
        self._total.add(draws)
        if len(self._profiles) > _MOST_SETTINGS:
            self._profiles.popitem(last=False)

    def acceptance(self, settings: Hashable, history: Sequence[SegmentDraws]) -> float:
        """Return how probable it is that the next draw is accepted.

        What others came to is multiplied by how this answer fared against it: with a Gamma prior
        around 1, as many acceptances as there were over as many as were expected.

        Args:
            settings: Equal for answers that are judged alike.
            history: The answer's own latest segments in order; the last is the one at hand, none of
                whose draws was accepted.
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
    """Draws, and how many of them were accepted."""

    def __init__(self) -> None:
        self.num_draws = self.num_accepted = 0.0

    def add(self, draws: SegmentDraws) -> None:
        """Count more."""
        self.num_draws += draws.num_draws
        self.num_accepted += draws.accepted

    def fade(self) -> None:
        """Let those of long ago count less."""
        share = min(1.0, _MEMORY / max(1.0, self.num_draws))
        self.num_draws *= share
        self.num_accepted *= share

    def rate(self, prior: float) -> float:
        """Return the posterior's mean."""
        return (self.num_accepted + _PRIOR * prior) / (self.num_draws + _PRIOR)


class _Profile:
    """What was seen under one group of settings."""

    def __init__(self) -> None:
        self._total = _Counts()
        self._cells: list[_Counts] = []
        self._rates: list[float] = []

    def note(self, draws: SegmentDraws) -> None:
        """Count more."""
        place = _place(draws.segment_index)
        while len(self._cells) <= place:
            self._cells.append(_Counts())
        self._cells[place].add(draws)
        self._cells[place].fade()
        self._total.add(draws)
        self._rates.clear()

    def rate(self, segment_index: int, total: _Counts) -> float:
        """Return the posterior's mean; behind the last index that was seen it is that one's.

        Args:
            segment_index: From 0.
            total: Of all settings; looked at again whenever something was noted here.
        """
        if not self._rates:
            elsewhere = _Counts()
            elsewhere.num_draws = total.num_draws - self._total.num_draws
            elsewhere.num_accepted = total.num_accepted - self._total.num_accepted
            self._rates.append(elsewhere.rate(1 / 3))
            for cell in self._cells:
                self._rates.append(cell.rate(self._rates[-1]))
        return self._rates[min(_place(segment_index) + 1, len(self._rates) - 1)]


def _place(index: int) -> int:
    """Return a number from 0 that grows with the index, ever more slowly."""
    single = _NUM_SINGLE.bit_length()
    return index if index < _NUM_SINGLE else _NUM_SINGLE + index.bit_length() - single
