"""What an engine is doing, and what it has done."""

from __future__ import annotations

from collections import Counter

from stars_engine.rollout import Rollout
from stars_engine.schema import Schema


class EngineStats(Schema):
    """A snapshot of one runtime, shared by all its handles.

    Tokens, attempts and rewards are those of answers that have ended.

    Attributes:
        num_in_line: Requests of calls that stand outside the full queue.
        num_waiting: Requests in the queue.
        num_active: Requests in progress.
        num_rows: Candidates that the next rounds draft for them.
        num_rounds: Rounds drafted.
        num_loads: Times a language model was loaded.
        num_finished: Answers that ended in their own way.
        num_failed: Answers that ended with an error.
        num_cancelled: Answers that their caller gave up.
        num_kept_tokens: See `Usage`.
        num_drafted_tokens: See `Usage`.
        num_surplus_tokens: See `Usage`.
        num_reward_calls: See `Usage`.
        num_attempts: See `Usage`.
        num_accepted: See `Usage`.
        num_forced: See `Usage`.
        num_ineligible: See `Usage`.
        num_reward_failures: See `Usage`.
        num_truncated_rewards: See `Usage`.
    """

    num_in_line: int = 0
    num_waiting: int = 0
    num_active: int = 0
    num_rows: int = 0
    num_rounds: int = 0
    num_loads: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_kept_tokens: int = 0
    num_drafted_tokens: int = 0
    num_surplus_tokens: int = 0
    num_reward_calls: int = 0
    num_attempts: int = 0
    num_accepted: int = 0
    num_forced: int = 0
    num_ineligible: int = 0
    num_reward_failures: int = 0
    num_truncated_rewards: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Accepted draws over judged draws; nan when nothing was judged."""
        return self.num_accepted / self.num_attempts if self.num_attempts else float("nan")


class Totals:
    """Sums over ended answers."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()

    def add(self, rollout: Rollout) -> None:
        """Add what an ended answer came to."""
        if rollout.error is not None:
            kind = "num_failed"
        else:
            kind = "num_cancelled" if rollout.finish_reason == "cancelled" else "num_finished"
        self._sums[kind] += 1
        self._sums["num_kept_tokens"] += len(rollout.token_ids)
        for name, amount in rollout.costs.items():
            self._sums[name] += amount

    def snapshot(self) -> dict[str, int]:
        """Return the sums, by the names of `EngineStats`."""
        return {name: self._sums[name] for name in EngineStats.model_fields if name in self._sums}
