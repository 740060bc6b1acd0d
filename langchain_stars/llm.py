"""`StarsLLM`: LangChain's arguments in, the engine's answers out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict

from stars_engine import SegmentEvent, StarsConfig, StarsResult
from stars_engine.adapting import (
    EngineFields,
    account_of,
    identity,
    refuse_several_answers,
    usage_of,
)


class StarsLLM(EngineFields, BaseLLM):
    """A language model of the local machine, steered by a reward model while it writes.

    Every field of `StarsConfig`'s parts may be given by its name, here or per call (`bind`,
    `invoke`, `configurable_fields`); unknown names raise. All instances in a process share one
    engine per language model, and concurrent calls share its rounds.

    Per call there is also `reward_prompt`: what the reward model reads in place of the prompt, such
    as the question without its documents.

    Example:
        >>> llm = StarsLLM(max_tokens=48, seed=7)
        >>> llm.invoke("The acting in this movie")
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    @property
    def _llm_type(self) -> str:
        return "stars"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return identity(self.settings())

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        kwargs.pop("reward_prompt", None)
        settings = self._settings(stop, kwargs)
        params = LangSmithParams(
            ls_provider="stars",
            ls_model_name=settings.model.name_or_path or "in memory",
            ls_model_type="llm",
        )
        if settings.sampling != "model":
            params["ls_temperature"] = settings.sampling.temperature
            params["ls_max_tokens"] = settings.sampling.max_tokens
            if settings.sampling.stop:
                params["ls_stop"] = list(settings.sampling.stop)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own token ids of a text, without begin-of-text."""
        return self.engine().model.codec.encode(text)

    # --- whole answers ---

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        settings, call = self._call(stop, kwargs)
        results = self.engine(settings).generate(prompts, **call)
        return _llm_result(results, len(prompts), settings)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        settings, call = self._call(stop, kwargs)
        results = await self.engine(settings).agenerate(prompts, **call)
        return _llm_result(results, len(prompts), settings)

    # --- accepted segments as they come ---

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        settings, call = self._call(stop, kwargs)
        refuse_several_answers(settings)
        with closing(self.engine(settings).stream(prompt, **call)) as events:
            for event in events:
                chunk = _chunk(event)
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        settings, call = self._call(stop, kwargs)
        refuse_several_answers(settings)
        async with self.engine(settings).astream(prompt, **call) as events:
            async for event in events:
                chunk = _chunk(event)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # --- settings ---

    def _settings(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> StarsConfig:
        return self.settings(**kwargs, **({} if stop is None else {"stop": stop}))

    def _call(
        self, stop: list[str] | None, kwargs: dict[str, Any]
    ) -> tuple[StarsConfig, dict[str, Any]]:
        """Return the settings of one call, and the engine's arguments."""
        reward_prompt = kwargs.pop("reward_prompt", None)
        settings = self._settings(stop, kwargs)
        call: dict[str, Any] = {"align": settings.align, "reward_prompt": reward_prompt}
        if settings.sampling != "model":
            call["sampling"] = settings.sampling
        return settings, call


def _llm_result(results: list[StarsResult], num_prompts: int, settings: StarsConfig) -> LLMResult:
    generations: list[list[Generation]] = [[] for _ in range(num_prompts)]
    totals: dict[str, int] = {}
    for result in results:
        generation = Generation(text=result.text, generation_info=account_of(result))
        generations[result.prompt_index].append(generation)
        for name, count in usage_of(result).items():
            totals[name] = totals.get(name, 0) + count
    return LLMResult(
        generations=generations,
        llm_output={"token_usage": totals, "model_name": settings.model.name_or_path},
    )


def _chunk(event: SegmentEvent) -> GenerationChunk:
    info = None if event.result is None else account_of(event.result)
    return GenerationChunk(text=event.text, generation_info=info)
