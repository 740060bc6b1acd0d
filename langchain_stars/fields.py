"""The common base of `StarsLLM` and `ChatStars`: settings, identity, token counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from langchain_core.language_models import LangSmithParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import ConfigDict

from stars_engine import StarsConfig
from stars_engine.integrations import EngineFields, name_of_model, own_names, short_identity

# Keywords of calls that are no settings. LangChain reads `stream`.
OF_CALL = ("reward_prompt", "trace", "stream")


class StarsFields(EngineFields):
    """Fields and methods that both adapters of LangChain have."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    _kind: ClassVar[Literal["llm", "chat"]]

    # Callbacks and traces receive the keywords of calls, so secrets in them are sealed first.

    if not TYPE_CHECKING:  # keep LangChain's signatures for type checkers

        def bind(self, **kwargs: Any) -> Any:
            """Bind keywords of calls under our names, with the secrets in model settings masked."""
            given = own_names(kwargs, type(self).__name__)
            return super().bind(**self.without_plain_secrets(given))

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            """See LangChain."""
            return super().generate(*args, **self.without_plain_secrets(kwargs))

        def agenerate(self, *args: Any, **kwargs: Any) -> Any:
            """See LangChain."""
            return super().agenerate(*args, **self.without_plain_secrets(kwargs))

        def stream(self, *args: Any, **kwargs: Any) -> Any:
            """See LangChain."""
            return super().stream(*args, **self.without_plain_secrets(kwargs))

        def astream(self, *args: Any, **kwargs: Any) -> Any:
            """See LangChain."""
            return super().astream(*args, **self.without_plain_secrets(kwargs))

    @property
    def _llm_type(self) -> str:
        return "stars"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        traced = {"trace": True} if self.trace else {}
        return {**short_identity(self.settings()), **traced}

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's token ids for a text, without begin-of-text.

        LangChain's field `custom_get_token_ids` replaces the tokenizer.
        """
        custom: Callable[[str], list[int]] | None = getattr(self, "custom_get_token_ids", None)
        if custom is not None:
            return custom(text)
        return self.engine().model.codec.encode(text)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        settings = self._settings(stop, self._of_engine(kwargs))
        params = LangSmithParams(
            ls_provider="stars",
            ls_model_name=name_of_model(settings),
            ls_model_type=self._kind,
        )
        if settings.sampling != "model":
            params["ls_temperature"] = settings.sampling.temperature
            params["ls_max_tokens"] = settings.sampling.max_tokens
            if settings.sampling.stop:
                params["ls_stop"] = list(settings.sampling.stop)
        return params

    def _of_engine(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keywords of a call that are settings."""
        return {name: value for name, value in kwargs.items() if name not in OF_CALL}

    def _settings(self, stop: list[str] | None, kwargs: Mapping[str, Any]) -> StarsConfig:
        given = {**kwargs, **({} if stop is None else {"stop": stop})}
        return self.settings(**own_names(given, type(self).__name__))

    def _call(
        self, stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[StarsConfig, dict[str, Any]]:
        """Return the settings of one call, and the arguments for the engine."""
        settings = self._settings(stop, self._of_engine(kwargs))
        call: dict[str, Any] = {
            "align": settings.align,
            "reward_prompt": kwargs.get("reward_prompt"),
        }
        if settings.sampling != "model":
            call["sampling"] = settings.sampling
        return settings, call


def all_at_once(
    config: RunnableConfig | list[RunnableConfig] | None, num_inputs: int
) -> list[RunnableConfig]:
    """Return configs with one thread per input; LangChain's threads only wait for the engine."""
    configs = get_config_list(config, num_inputs)
    for one in configs:
        if one.get("max_concurrency") is None:
            one["max_concurrency"] = max(1, num_inputs)
    return configs
