"""From the arguments of a call to a request group that the runtime serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, cast

from stars_engine.algorithm.stars import warn_of_greedy
from stars_engine.calibration.auto import CalibrationRequest, calibrations_of
from stars_engine.calibration.settings import warn_of_mismatches
from stars_engine.display.cell_progress import Stage, cell_progress
from stars_engine.engine.arguments import Aligns, Prompts, RewardPrompts, Samplings, prompt_requests
from stars_engine.engine.handle import Handle
from stars_engine.engine.pending_thresholds import PendingThresholds
from stars_engine.engine.untrusted import act_on_trust
from stars_engine.runtime.blocking_wait import wait_for
from stars_engine.runtime.limits import within_limits
from stars_engine.runtime.request_group import PromptRequest, RequestGroup

if TYPE_CHECKING:
    from stars_engine.calibration.host import Host


class EngineCalls(Handle):
    """Makes request groups, calibrates what they need, and submits them; base of `StarsEngine`."""

    def _new_group(
        self,
        prompts: Prompts,
        sampling: Samplings,
        align: Aligns,
        reward_prompt: RewardPrompts,
        fields: Mapping[str, Any] | None = None,
    ) -> RequestGroup:
        self._check_open()
        requests = prompt_requests(
            self.config,
            prompts,
            sampling=sampling,
            align=align,
            reward_prompt=reward_prompt,
            fields=fields or {},
            default_sampling=lambda: self.sampling,
        )
        group = RequestGroup(
            requests,
            self._source,
            prompt_format=self.config.prompt_format,
            template_kwargs=self.config.chat_template_kwargs,
            owner=self,
        )
        return within_limits(group, self.config.engine)

    def _resolve_thresholds(self, group: RequestGroup) -> None:
        """Replace each `AutoSchedule` by calibrated thresholds; may take minutes.

        The duration and the deadline of a request start afterwards.
        """
        if not group.needs_calibration:
            return
        self._runtime.check_can_wait()
        progress = cell_progress(lambda: Stage("calibrating thresholds"))
        with self._pending_thresholds(group) as thresholds, progress as show:
            for future in thresholds.futures:
                wait_for(future, show)

    async def _aresolve_thresholds(self, group: RequestGroup) -> None:
        """Do the same without blocking a thread; cancelling returns at once."""
        if not group.needs_calibration:
            return
        await self.aload()  # calibrations depend on the models
        with self._pending_thresholds(group) as thresholds:
            for future in thresholds.futures:
                await asyncio.wrap_future(future)

    def _pending_thresholds(self, group: RequestGroup) -> PendingThresholds:
        portable = self._factory is not None and not (
            self.config.model.is_live or self.config.reward.is_live
        )
        calibrations = calibrations_of(self._runtime)
        host = cast("Host", self)  # `StarsEngine` has its methods

        def request(prompt: PromptRequest) -> CalibrationRequest:
            return calibrations.request(
                host,
                prompt.align,
                prompt.sampling or self.sampling,
                reward_key=self._source.key,
                portable=portable,
            )

        return PendingThresholds(group, request)

    def _submit(self, group: RequestGroup) -> RequestGroup:
        self._runtime.check_can_wait()
        if group.has_final_thresholds:
            self._recent.note(group)
            if act_on_trust(group):
                within_limits(group, self.config.engine)
        if group.judged:
            warn_of_greedy(
                (request.sampling, request.align)
                for request in group.prompts
                if request.sampling is not None
            )
            accepted = (each for i, each in enumerate(group.prompts) if i not in group.refused)
            warn_of_mismatches(self.config, ((each.align, each.sampling) for each in accepted))
        self._runtime.submit(group, wait=self.config.engine.on_full == "wait")
        return group

    def _results(self, group: RequestGroup) -> list[Any]:
        def stage() -> Stage:
            if not self.is_loaded:
                return Stage("loading the models")
            return Stage("answers:", group.num_done, group.num_answers)

        future = self._submit(group).future
        with cell_progress(stage) as show:
            results: list[Any] = self._wait_for(future, group, show)
        return results

    def _wait_for(
        self, future: Future[Any], group: RequestGroup, meanwhile: Callable[[], None] | None = None
    ) -> Any:
        try:
            return wait_for(future, meanwhile)
        except BaseException:  # including KeyboardInterrupt: the caller stops waiting
            group.cancel()
            raise
