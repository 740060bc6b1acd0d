"""Statistics of an engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from pydantic import Field

from stars_engine.algorithm.rollout import Rollout
from stars_engine.protocols import read_optional
from stars_engine.remote.stats import ServerStats
from stars_engine.runtime.diagnostics import deviations
from stars_engine.schema import Schema
from stars_engine.types import FinishReason


class EngineStats(Schema):
    """A snapshot of one runtime, shared by all its handles.

    Counts of tokens, segments, attempts and rewards cover answers that have ended.

    Attributes:
        num_in_line: Requests that wait to enter the full queue.
        num_waiting: Requests in the queue.
        num_active: Requests in progress.
        num_rows: Candidates that the next steps draft for requests in progress.
        num_steps: Steps that drafted something.
        num_loads: How often a language model was loaded.
        num_finished: Answers that ended without an error and were not cancelled.
        num_failed: Answers that ended with an error.
        num_cancelled: Answers that their caller cancelled.
        num_segments: Segments that were judged and kept; `vanilla` and `best_of_n` have none.
        num_kept_tokens: See `Usage`.
        num_drafted_tokens: See `Usage`.
        num_lookahead_tokens: See `Usage`.
        num_surplus_tokens: See `Usage`.
        num_speculative_tokens: See `Usage`.
        num_reward_calls: See `Usage`.
        num_attempts: See `Usage`.
        num_repeated_draws: See `Usage`.
        num_similar_draws: See `Usage`.
        num_accepted: See `Usage`.
        num_forced: See `Usage`.
        num_ineligible: See `Usage`.
        num_reward_failures: See `Usage`.
        num_truncated_rewards: See `Usage`.
        num_server_requests: Requests that servers of the models have answered; 0 without servers.
        num_server_retries: Attempts after the first of their requests.
        num_server_failovers: Attempts at another server than the one before.
        num_server_prompt_tokens: Prompt tokens of the drafts that servers have answered.
        num_server_cached_tokens: Those of them that servers had in their prefix caches.
        num_calibrated_drafts: First drafts that were judged by calibrated thresholds.
        reward_drift: Mean deviation of their rewards from what the calibration expects, in
            standard deviations of drafts; nan if there are none. It should be near 0.
        memory_bytes: Bytes that the engine keeps beside the weights, by holder: "kv_cache" (cached
            prefixes), "candidates" (recent candidates, any of which may be accepted) and
            "packed_weights" (copies of linear layers), of the "model" and of all its "reward"s
            together, such as `memory_bytes["model.kv_cache"]`. Empty before models are loaded.
    """

    num_in_line: int = 0
    num_waiting: int = 0
    num_active: int = 0
    num_rows: int = 0
    num_steps: int = 0
    num_loads: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_segments: int = 0
    num_kept_tokens: int = 0
    num_drafted_tokens: int = 0
    num_lookahead_tokens: int = 0
    num_surplus_tokens: int = 0
    num_speculative_tokens: int = 0
    num_reward_calls: int = 0
    num_attempts: int = 0
    num_repeated_draws: int = 0
    num_similar_draws: int = 0
    num_accepted: int = 0
    num_forced: int = 0
    num_ineligible: int = 0
    num_reward_failures: int = 0
    num_truncated_rewards: int = 0
    num_server_requests: int = 0
    num_server_retries: int = 0
    num_server_failovers: int = 0
    num_server_prompt_tokens: int = 0
    num_server_cached_tokens: int = 0
    num_calibrated_drafts: int = 0
    reward_drift: float = math.nan
    memory_bytes: dict[str, int] = Field(default_factory=dict)

    @property
    def acceptance_rate(self) -> float:
        """Accepted draws over judged draws; nan if nothing was judged."""
        return self.num_accepted / self.num_attempts if self.num_attempts else float("nan")

    @property
    def forced_rate(self) -> float:
        """Forced segments over segments that were judged and kept; nan if there are none."""
        return self.num_forced / self.num_segments if self.num_segments else float("nan")

    @property
    def cache_hit_rate(self) -> float:
        """Cached prompt tokens over prompt tokens of servers; nan if there are none."""
        total = self.num_server_prompt_tokens
        return self.num_server_cached_tokens / total if total else float("nan")


class Totals:
    """Sums over finished answers."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._deviation = 0.0

    def add(self, rollout: Rollout, *, judged: bool, has_final_thresholds: bool) -> None:
        """Add the counts of a finished answer, without those of an answer that it continues.

        Args:
            rollout: The answer.
            judged: Whether its segments were judged.
            has_final_thresholds: Whether its thresholds are final, not being calibrated.
        """
        if rollout.error is not None:
            kind = "num_failed"
        else:
            kind = "num_cancelled" if rollout.finish_reason == "cancelled" else "num_finished"
        self._sums[kind] += 1
        self._sums["num_segments"] += (
            rollout.num_kept_segments - rollout.num_forked_segments if judged else 0
        )
        self._sums["num_kept_tokens"] += len(rollout.token_ids) - rollout.num_forked_tokens
        for name, amount in rollout.costs.items():
            self._sums[name] += amount
        if has_final_thresholds:
            found = deviations(rollout)
            self._sums["num_calibrated_drafts"] += len(found)
            self._deviation += sum(found)

    def add_unstarted(self, num_answers: int, reason: FinishReason) -> None:
        """Add answers that ended for some reason before they started."""
        self._sums["num_cancelled" if reason == "cancelled" else "num_finished"] += num_answers

    def snapshot(self) -> dict[str, Any]:
        """Return the sums, by the field names of `EngineStats`."""
        sums = {name: self._sums[name] for name in EngineStats.model_fields if name in self._sums}
        count = sums.get("num_calibrated_drafts", 0)
        return {**sums, "reward_drift": self._deviation / count if count else math.nan}


def server_counts(models: Iterable[object]) -> dict[str, int]:
    """Return the counts of the models that are behind servers, by the fields of `EngineStats`."""
    counts: Counter[str] = Counter()
    for model in models:
        stats = read_optional(model, "server_stats")
        if isinstance(stats, ServerStats):
            for each in fields(stats):
                counts[each.name.replace("num_", "num_server_", 1)] += getattr(stats, each.name)
    return dict(counts)
