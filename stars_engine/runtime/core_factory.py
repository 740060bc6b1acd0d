"""Create the engine core of a runtime from its settings."""

from __future__ import annotations

from collections.abc import Callable

from stars_engine.backends.base import LanguageModel
from stars_engine.config import EngineParams
from stars_engine.core.autotune.autotuner import CandidateAutotuner
from stars_engine.core.engine_core import EngineCore, Scorer
from stars_engine.core.local_drafts import PART_S
from stars_engine.core.memory_budget import MemoryBudget
from stars_engine.core.scheduler import Scheduler


def new_core(
    model: LanguageModel,
    params: EngineParams,
    *,
    scorer: Scorer,
    autotuner: CandidateAutotuner,
    post: Callable[[Callable[[], None]], None],
) -> EngineCore:
    """Return an engine core within the limits of an engine; for its arguments see `EngineCore`."""
    budget = MemoryBudget(
        model, max_tokens=params.max_prefix_tokens, max_bytes=params.max_cache_bytes
    )
    scheduler = Scheduler(max_rows=params.max_rows, max_active=params.max_active, budget=budget)
    return EngineCore(
        model,
        scheduler,
        scorer,
        autotuner,
        post=post,
        draft_ahead=params.draft_ahead,
        part_s=PART_S,
    )
