"""Simulated servers: how fast answers are with the autotuner, and with fixed numbers of candidates.

    python -m benchmarks.server_queue

A language model server computes one token for all its rows in a step, and a reward server scores
what waits for it in one batch at a time. The times are those of SmolLM2-135M and a reward model of
its size on one CPU core each; see `Machine`. Reported is the speed over plain generation.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from stars_engine.core.autotune.allocation import Chances, allocate_rows
from stars_engine.core.autotune.load_costs import Load, LoadCosts

SEGMENT_LEN = 32
Choose = Callable[[list[int]], int]  # from the numbers of the other answers


class Machine(NamedTuple):
    """Milliseconds of the servers' work.

    Attributes:
        step: A step of the language model, without rows.
        row: Each row of a step.
        tail: Reading what is not cached of a candidate's prefix.
        call: A batch of rewards.
        reward: Each reward of it.
        hop: A message between client and server.
        noise: Standard deviation of the logarithm of durations.
        load: Likewise, of a factor on all durations that changes every five seconds, as on a
            machine with other work.
    """

    step: float = 16.5
    row: float = 1.0
    tail: float = 14.4
    call: float = 15.0
    reward: float = 30.0
    hop: float = 4.0
    noise: float = 0.1
    load: float = 0.0


@dataclass(eq=False, slots=True)
class _Flight:
    """The candidates of one answer's next segment."""

    answer: int
    count: int
    started: float
    load_before: float
    steps_left: int = SEGMENT_LEN


class Simulation:
    """Answers that never end, at two servers.

    Args:
        machine: The servers.
        streams: Number of answers.
        acceptance: Probability that a draw is accepted.
        candidates: Candidates at once; None for the autotuner's choice.
        seed: Of noise and acceptance.
    """

    def __init__(
        self,
        machine: Machine,
        streams: int,
        acceptance: float,
        candidates: int | None = None,
        seed: int = 0,
    ) -> None:
        self._machine, self._acceptance, self._fixed = machine, acceptance, candidates
        self._streams = streams
        self._random = Random(seed)
        self._now, self._num_events = 0.0, 0
        self._slowness, self._slow_until = 1.0, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._flights: dict[int, _Flight] = {}
        self._new: list[_Flight] = []
        self._drafting: list[_Flight] = []
        self._queued: list[_Flight] = []
        self._steps = self._scores = False  # whether each server is busy
        self._load, self._costs = Load(), LoadCosts()
        self.num_kept = self.num_drafted = 0

    def run(self, num_segments: int) -> float:
        """Return the speed over plain generation of 128 tokens after prompts of 50."""
        for answer in range(self._streams):
            self._launch(answer)
        while self.num_kept < num_segments:
            self._now, _, event = heapq.heappop(self._events)
            event()
        each = self._machine
        prompt = each.tail * 50 / 18  # 18 of 50 tokens are not in a whole block of 32
        plain = 128 * (each.step + each.row * self._streams) + self._streams * prompt
        per_token = self._now / (self.num_kept * SEGMENT_LEN)
        return plain / (128 * self._streams) / per_token

    def _after(self, duration: float, event: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (self._now + duration, self._num_events, event))

    def _noisy(self, duration: float) -> float:
        if self._now >= self._slow_until:
            self._slow_until = self._now + 5000
            self._slowness = self._random.lognormvariate(0, self._machine.load)
        return duration * self._slowness * self._random.lognormvariate(0, self._machine.noise)

    def _launch(self, answer: int) -> None:
        others = [each.count for each in self._flights.values()]
        count = self._fixed or self._choose(others)
        flight = _Flight(answer, count, self._now, self._load.total(self._now))
        self._flights[answer] = flight
        self.num_drafted += count
        self._note_load()
        self._after(self._machine.hop, lambda: self._arrive(flight))

    def _choose(self, others: list[int]) -> int:
        chances = [Chances(1, 64, self._acceptance)]
        chances += [Chances(count, count, self._acceptance) for count in others]
        return allocate_rows(chances, self._costs.curve(len(chances)), 128)[0]

    def _note_load(self) -> None:
        self._load.set(sum(each.count for each in self._flights.values()), self._now)

    # --- the language model ---

    def _arrive(self, flight: _Flight) -> None:
        self._new.append(flight)
        self._step()

    def _step(self) -> None:
        if self._steps or not (self._new or self._drafting):
            return
        self._steps = True
        machine = self._machine
        num_new = sum(flight.count for flight in self._new)
        self._drafting, self._new = [*self._drafting, *self._new], []
        rows = sum(flight.count for flight in self._drafting)
        duration = machine.step + machine.row * rows + machine.tail * num_new
        self._after(self._noisy(duration), self._end_step)

    def _end_step(self) -> None:
        self._steps = False
        for flight in self._drafting:
            flight.steps_left -= 1
            if not flight.steps_left:
                self._after(2 * self._machine.hop, lambda done=flight: self._score(done))
        self._drafting = [flight for flight in self._drafting if flight.steps_left]
        self._step()

    # --- rewards ---

    def _score(self, flight: _Flight | None = None) -> None:
        self._queued += [] if flight is None else [flight]
        if self._scores or not self._queued:
            return
        self._scores = True
        batch, self._queued = self._queued, []
        num_rewards = sum(each.count for each in batch)
        duration = self._machine.call + self._machine.reward * num_rewards
        self._after(self._noisy(duration), lambda: self._end_call(batch))

    def _end_call(self, batch: list[_Flight]) -> None:
        self._scores = False
        for flight in batch:
            self._after(self._machine.hop, lambda done=flight: self._judge(done))
        self._score()

    def _judge(self, flight: _Flight) -> None:
        draws = range(flight.count)
        self.num_kept += any(self._random.random() < self._acceptance for _ in draws)
        seconds = self._now - flight.started
        load = (self._load.total(self._now) - flight.load_before) / seconds
        self._costs.note(load, flight.count, seconds / SEGMENT_LEN)
        del self._flights[flight.answer]
        self._note_load()
        self._launch(flight.answer)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segments", type=int, default=400, help="of each answer")
    options = parser.parse_args()
    numbers = [1, 2, 3, 4, 6, 8]
    print("| streams | accepted | learned | drafted per kept token | best fixed number |")
    print("|---:|---:|---:|---:|---|")
    for streams in (1, 4, 16):
        for acceptance in (0.5, 0.2):
            count = max(400, options.segments * streams // 4)
            fixed = {m: Simulation(Machine(), streams, acceptance, m).run(count) for m in numbers}
            best = max(numbers, key=lambda number: fixed[number])
            learned = Simulation(Machine(), streams, acceptance)
            speed = learned.run(count)
            drafted = learned.num_drafted / learned.num_kept
            print(
                f"| {streams} | {acceptance} | {speed:.2f} | {drafted:.1f} | "
                f"{fixed[best]:.2f} with {best} |"
            )


if __name__ == "__main__":
    main()
