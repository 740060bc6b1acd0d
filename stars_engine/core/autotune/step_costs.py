"""What rounds cost, by the number of their rows and the length of what they go on from."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Mapping
from statistics import median_low

_NUM_KEPT = 5  # measurements of one number of rows; their median does not heed a single slow one
_LIFETIME = 500  # rounds after which a measurement is forgotten, so that a slow one is not for ever
_OPTIMISM = 0.8  # what is said of numbers beyond those that were seen, so that they are tried
_SLOPE = 0.1  # what a further row costs, as a share of a round of one, before it is measured


class Curve:
    """Costs by the number of rows: lines between points.

    Beyond them a row is taken to add a tenth of what a single one costs, and a fifth is taken off,
    so that the next number up or down is tried.

    Args:
        points: Seconds by the number of rows; without any, a round of one costs 1.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        self._rows = sorted(points)
        self._seconds = [points[rows] for rows in self._rows]

    def __call__(self, num_rows: int) -> float:
        """Return the seconds expected of a round."""
        beyond = self._rows and not self._rows[0] <= num_rows <= self._rows[-1]
        return self.on_line(num_rows) * (_OPTIMISM if beyond else 1)

    def on_line(self, num_rows: int) -> float:
        """Return the seconds without anything taken off."""
        if not self._rows:
            return _guess(num_rows)
        place = bisect_left(self._rows, num_rows)
        if 0 < place < len(self._rows):
            low, high = self._rows[place - 1], self._rows[place]
            share = (num_rows - low) / (high - low)
            return self._seconds[place - 1] * (1 - share) + self._seconds[place] * share
        end = 0 if place == 0 else -1
        return self._seconds[end] * _guess(num_rows) / _guess(self._rows[end])

    def nearest(self, num_rows: int) -> int:
        """Return the number of a point that is nearest by its ratio."""
        place = bisect_left(self._rows, num_rows)
        around = self._rows[max(0, place - 1) : place + 1]
        return min(around, key=lambda rows: max(rows / num_rows, num_rows / rows))


class StepCosts:
    """Seconds that rounds take, as measured so far.

    Hardware is not linear: two rows may cost as much as eight. Measurements are kept by the number
    of rows and by the length of all prefixes together, in powers of four. What was not seen at one
    length has the form that it has at the nearest one, and last that of the probe.

    Attributes:
        probed: Seconds by the number of rows, in a unit of their own: only their ratios count.
    """

    def __init__(self) -> None:
        self.probed: Mapping[int, float] = {}
        self._tables: defaultdict[int, dict[int, _Measured]] = defaultdict(dict)
        self._num_notes = 0

    def note(self, num_rows: int, seconds: float, num_tokens: int = 0) -> None:
        """Take in a measurement.

        Args:
            num_rows: Of the round.
            seconds: It took; of rounds of different lengths, per token.
            num_tokens: Of its prefixes.
        """
        self._num_notes += 1
        table = self._tables[_bucket(num_tokens)]
        table.setdefault(num_rows, _Measured()).add(seconds, self._num_notes)
        for rows, measured in list(table.items()):
            if self._num_notes - measured.noted_at > _LIFETIME:
                del table[rows]

    def curve(self, num_tokens: int = 0) -> Curve:
        """Return the costs of rounds on prefixes of so many tokens in all."""
        bucket = _bucket(num_tokens)
        points: dict[int, float] = {}
        for other in sorted(self._tables, key=lambda other: (abs(other - bucket), other)):
            table = self._tables[other]
            points = _completed(points, {rows: table[rows].seconds for rows in table})
        return Curve(_completed(points, self.probed))

    def of(self, num_rows: int, num_tokens: int = 0) -> float:
        """Return the seconds expected of a round."""
        return self.curve(num_tokens)(num_rows)


class _Measured:
    """What rounds of one number of rows took."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=_NUM_KEPT)
        self.seconds, self.noted_at = 0.0, 0

    def add(self, seconds: float, noted_at: int) -> None:
        """Take in the newest."""
        self._latest.append(seconds)
        self.seconds, self.noted_at = median_low(self._latest), noted_at


def _completed(points: Mapping[int, float], others: Mapping[int, float]) -> dict[int, float]:
    """Add the points that are lacking, in proportion to the nearest that is there."""
    if not points:
        return dict(others)
    own, form = Curve(points), Curve(others)
    lacking = {}
    for rows in others.keys() - points.keys():
        near = own.nearest(rows)
        lacking[rows] = others[rows] * points[near] / form.on_line(near)
    return {**points, **lacking}


def _bucket(num_tokens: int) -> int:
    return num_tokens.bit_length() // 2


def _guess(num_rows: int) -> float:
    return 1 + _SLOPE * (num_rows - 1)
