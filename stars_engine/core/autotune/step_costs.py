"""The cost of steps, by the number of rows and the length of their prefixes."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Mapping
from statistics import median_low

_NUM_KEPT = 5  # measurements per number of rows; their median ignores a single slow one
_LIFETIME = 500  # steps after which a measurement expires, so that outliers do not persist
_OPTIMISM = 0.8  # factor for unmeasured numbers of rows, so that they are tried
_SLOPE = 0.1  # assumed cost of a further row, as a share of a step of one row


class StepCostCurve:
    """Costs by the number of rows, interpolated linearly between points.

    Beyond the points, each row adds a tenth of the cost of a single row, and a fifth is deducted so
    that the next number up or down is tried.

    Args:
        points: Seconds by the number of rows; if empty, a step of one row costs 1.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        self._rows = sorted(points)
        self._seconds = [points[rows] for rows in self._rows]

    def __call__(self, num_rows: int) -> float:
        """Return the expected seconds of a step."""
        beyond = self._rows and not self._rows[0] <= num_rows <= self._rows[-1]
        return self.on_line(num_rows) * (_OPTIMISM if beyond else 1)

    def on_line(self, num_rows: int) -> float:
        """Return the expected seconds without the deduction beyond the points."""
        if not self._rows:
            return _guess(num_rows)
        index = bisect_left(self._rows, num_rows)
        if 0 < index < len(self._rows):
            low, high = self._rows[index - 1], self._rows[index]
            share = (num_rows - low) / (high - low)
            return self._seconds[index - 1] * (1 - share) + self._seconds[index] * share
        end = 0 if index == 0 else -1
        return self._seconds[end] * _guess(num_rows) / _guess(self._rows[end])

    def nearest(self, num_rows: int) -> int:
        """Return the number of rows of the point that is nearest by ratio."""
        index = bisect_left(self._rows, num_rows)
        around = self._rows[max(0, index - 1) : index + 1]
        return min(around, key=lambda rows: max(rows / num_rows, num_rows / rows))


class StepCosts:
    """Measured durations of steps.

    Hardware is not linear: two rows may cost as much as eight. Measurements are stored by the
    number of rows and by the total length of all prefixes, in powers of four. Missing numbers of
    rows take their ratios from the nearest length that has them, and finally from the probe.

    Attributes:
        probed: Results of the probe: seconds by the number of rows. Only their ratios are used.
    """

    def __init__(self) -> None:
        self.probed: Mapping[int, float] = {}
        self._tables: defaultdict[int, dict[int, _Measured]] = defaultdict(dict)
        self._num_notes = 0

    @property
    def is_measured(self) -> bool:
        """Whether any step was recorded. The probe alone says nothing about rewards."""
        return bool(self._tables)

    def note(self, num_rows: int, seconds: float, num_tokens: int = 0) -> None:
        """Record a measurement.

        Args:
            num_rows: Number of rows of the step.
            seconds: Duration of the step, per drafted token.
            num_tokens: Total length of its prefixes.
        """
        self._num_notes += 1
        table = self._tables[_bucket(num_tokens)]
        table.setdefault(num_rows, _Measured()).add(seconds, self._num_notes)
        for rows, measured in list(table.items()):
            if self._num_notes - measured.noted_at > _LIFETIME:
                del table[rows]

    def curve(self, num_tokens: int = 0) -> StepCostCurve:
        """Return the costs of steps whose prefixes have `num_tokens` tokens in total."""
        bucket = _bucket(num_tokens)
        points: dict[int, float] = {}
        for other in sorted(self._tables, key=lambda other: (abs(other - bucket), other)):
            table = self._tables[other]
            points = _completed(points, {rows: table[rows].seconds for rows in table})
        return StepCostCurve(_completed(points, self.probed))

    def of(self, num_rows: int, num_tokens: int = 0) -> float:
        """Return the expected seconds of a step."""
        return self.curve(num_tokens)(num_rows)


class _Measured:
    """Recent durations of steps with one number of rows."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=_NUM_KEPT)
        self.seconds, self.noted_at = 0.0, 0

    def add(self, seconds: float, noted_at: int) -> None:
        """Add the latest duration."""
        self._latest.append(seconds)
        self.seconds, self.noted_at = median_low(self._latest), noted_at


def _completed(points: Mapping[int, float], others: Mapping[int, float]) -> dict[int, float]:
    """Add missing points, scaled by the nearest known point."""
    if not points:
        return dict(others)
    own, form = StepCostCurve(points), StepCostCurve(others)
    lacking = {}
    for rows in others.keys() - points.keys():
        near = own.nearest(rows)
        lacking[rows] = others[rows] * points[near] / form.on_line(near)
    return {**points, **lacking}


def _bucket(num_tokens: int) -> int:
    return num_tokens.bit_length() // 2


def _guess(num_rows: int) -> float:
    return 1 + _SLOPE * (num_rows - 1)
