"""The time to a verdict if candidates of many requests are under way at once.

An asynchronous model has no steps: requests start and end at any time, and share language model
servers and reward servers with all others. The number of candidates at one moment says little,
since those that are drafted now have their rewards computed later. What counts is the mean number
of candidates under way, drafted or scored, until the verdict.
"""

from __future__ import annotations

from collections.abc import Callable

_SLOPE = 0.12  # assumed cost of a further candidate, as a share of the time without candidates
_PRIOR = 4.0  # least weight of the assumption, as a sum of squared deviations of the load
_FADING = 1 - 1 / 64  # weight of a verdict, relative to the next one
_KNOWN = 2.0  # times the mean load; beyond it, candidates cost at least what is assumed
_LEAST_FIXED = 0.02  # share of the mean time that does not depend on candidates, at least


class Load:
    """The number of candidates under way, integrated over time."""

    def __init__(self) -> None:
        self._count, self._since_s, self._total = 0, 0.0, 0.0

    def set(self, count: int, now_s: float) -> None:
        """Change the number of candidates."""
        self._total = self.total(now_s)
        self._count, self._since_s = count, now_s

    def total(self, now_s: float) -> float:
        """Return the candidate-seconds so far; differences of it are meaningful."""
        return self._total + self._count * (now_s - self._since_s)


class LoadCosts:
    """Learns seconds = fixed + a * load + b * own, from verdicts.

    `load` is the mean number of candidates of all requests until the verdict, and `own` those of
    the request. It is a least-squares fit in which old verdicts fade. A line is fitted, not a
    table, because the fewest candidates of a table of noisy times would seldom be the best.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._means = [0.0, 0.0, 0.0]  # load, own, seconds
        self._products = [[0.0] * 3 for _ in range(3)]  # weighted sums of products of deviations

    def note(self, load: float, own: int, seconds: float) -> None:
        """Record a verdict.

        Args:
            load: Mean number of candidates of all requests that were under way until the verdict.
            own: Candidates of the request.
            seconds: From the request for drafts to the verdict, per token of a draft.
        """
        values = (load, float(own), seconds)
        self._weight = self._weight * _FADING + 1
        before = [value - mean for value, mean in zip(values, self._means, strict=True)]
        self._means = [
            mean + each / self._weight for mean, each in zip(self._means, before, strict=True)
        ]
        after = [value - mean for value, mean in zip(values, self._means, strict=True)]
        for row, first in zip(self._products, before, strict=True):
            for index, second in enumerate(after):
                row[index] = row[index] * _FADING + first * second

    def candidate_s(self, num_requests: int) -> float:
        """Return by how many seconds a further candidate prolongs each request, per token.

        Args:
            num_requests: Requests under way. If each of them has one candidate more, the load
                rises by their number, but the own candidates of each by one.
        """
        load, own = self._slopes()
        return load + own / num_requests

    def curve(self, num_requests: int) -> Callable[[int], float]:
        """Return the expected seconds per token, by the candidates of all requests under way."""
        fixed_s, candidate_s = self._fixed_s(), self.candidate_s(num_requests)
        unknown_s = max(0.0, self._assumed - candidate_s)
        known = _KNOWN * self._means[0]
        return lambda count: fixed_s + candidate_s * count + unknown_s * max(0.0, count - known)

    def _fixed_s(self) -> float:
        """Return the seconds without any candidates, per token."""
        load, own = self._slopes()
        mean_load, mean_own, mean_s = self._means
        if not self._weight:
            return 1.0
        return max(mean_s - load * mean_load - own * mean_own, _LEAST_FIXED * mean_s)

    def _slopes(self) -> tuple[float, float]:
        """Return the seconds of a candidate in the load, and of an own one beyond that."""
        if not self._weight:
            return _SLOPE, 0.0
        assumed = self._assumed
        (load, both, load_s), (_, own, own_s), (_, _, square_s) = self._products
        # The noisier the times, the more verdicts it takes to outweigh the assumption.
        unexplained = square_s - 2 * assumed * load_s + assumed**2 * load
        prior = max(_PRIOR, unexplained / self._weight / assumed**2)
        load, own, load_s = load + prior, own + prior, load_s + prior * assumed
        determinant = load * own - both * both  # positive, because of the prior
        slope = (load_s * own - own_s * both) / determinant
        own_slope = (own_s * load - load_s * both) / determinant
        return max(slope, 0.0), max(own_slope, 0.0)

    @property
    def _assumed(self) -> float:
        mean_load, _, mean_s = self._means
        return _SLOPE * mean_s / (1 + _SLOPE * mean_load) if self._weight else _SLOPE
