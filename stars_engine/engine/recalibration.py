"""Prompts of recent calls, and thresholds that are fitted to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from stars_engine.calibration.calibrate import DEFAULT_PROMPTS, MIN_PROMPTS, calibrate
from stars_engine.calibration.host import Host
from stars_engine.config import AlignParams
from stars_engine.errors import ConfigError, Problem
from stars_engine.messages import Chat
from stars_engine.runtime.limits import size_of
from stars_engine.runtime.request_group import RequestGroup
from stars_engine.schedules import AutoSchedule, CalibratedSchedule
from stars_engine.types import Prompt, RenderedPrompt, TokenIds

MAX_CHARS = 20_000  # longer prompts are not kept

_Pair = tuple[Prompt, str | Chat | None]  # a prompt, and what replaces it for the reward model


class RecentPrompts:
    """The distinct prompts of recent calls whose thresholds are calibrated. Thread-safe.

    Args:
        max_prompts: How many are kept.
    """

    def __init__(self, max_prompts: int = 2 * DEFAULT_PROMPTS) -> None:
        self._max_prompts, self._lock = max_prompts, Lock()
        self.max_tokens = 0  # that the schedules of recent calls cover
        self._found: OrderedDict[_Pair, None] = OrderedDict()

    def note(self, group: RequestGroup) -> None:
        """Keep the prompts of a call."""
        for request in group.prompts[-self._max_prompts :]:
            schedule = request.align.schedule
            if not isinstance(schedule, CalibratedSchedule):
                continue
            self.max_tokens = max(self.max_tokens, schedule.max_tokens or 0)
            pair = request.prompt, request.reward_prompt
            is_prompt = isinstance(request.prompt, str | Chat | TokenIds | RenderedPrompt)
            if not is_prompt or size_of(pair) > MAX_CHARS:
                continue
            with self._lock:
                self._found[pair] = None
                self._found.move_to_end(pair)
                while len(self._found) > self._max_prompts:
                    self._found.popitem(last=False)

    def latest(self, count: int) -> list[_Pair]:
        """Return up to `count` prompts with their reward prompts, the latest last."""
        with self._lock:
            return list(self._found)[-count:]


def recalibrated(
    engine: Host,
    align: AlignParams,
    recent: RecentPrompts,
    prompts: Sequence[Prompt] | None,
    progress: Callable[[int, int], None] | None,
) -> CalibratedSchedule:
    """Calibrate again for the target of the present schedule; see `StarsEngine.recalibrate`."""
    schedule, sampling = align.schedule, engine.sampling
    if isinstance(schedule, AutoSchedule):
        name, value = schedule.target
        target: dict[str, Any] = {name: value}
        relative_beta, on_untrusted = schedule.relative_beta, schedule.on_untrusted
        limit_draws = False
        segment_len = None if schedule.segment_len == "auto" else schedule.segment_len
        max_tokens = max(sampling.max_tokens, recent.max_tokens)
    elif isinstance(schedule, CalibratedSchedule) and "pilot" in schedule.made_for:
        pilot = schedule.made_for["pilot"]
        target, relative_beta = pilot["target"], pilot["relative_beta"]
        on_untrusted = "ignore" if schedule.trust is None else schedule.on_untrusted
        segment_len, max_tokens = schedule.segment_len, pilot["max_tokens"]
        limit_draws = pilot.get("limit_draws", False)
    else:
        raise _problem(
            "schedule",
            f"{schedule!r} was not calibrated. Hint: use AutoSchedule(), or a schedule that "
            "stars_engine.calibrate returned",
        )
    reward_prompts: list[str | Chat | None] | None = None
    if prompts is None:
        found = recent.latest(DEFAULT_PROMPTS)
        if len(found) < MIN_PROMPTS:
            raise _problem(
                "prompts",
                f"{len(found)} prompts of recent calls are too few. Hint: generate answers to at "
                f"least {MIN_PROMPTS} prompts first (100 are better), or give prompts=[...]",
            )
        prompts = [prompt for prompt, _ in found]
        reward_prompts = [reward for _, reward in found]
    return calibrate(
        engine,
        prompts,
        **target,
        segment_len=segment_len,
        relative_beta=relative_beta,
        align=align,
        sampling=sampling.replace(max_tokens=max_tokens, on_overflow="clamp"),
        reward_prompt=reward_prompts,
        progress=progress,
        on_untrusted=on_untrusted,
        limit_draws=limit_draws,
    )


def _problem(field: str, message: str) -> ConfigError:
    return ConfigError("recalibrate", [Problem(field, message)])
