"""The common base of `StarsLLM` and `ChatStars`: settings, identity, token counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from langchain_core.language_models import LangSmithParams
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from pydantic import ConfigDict, Field

from stars_engine import ConfigError, StarsConfig
from stars_engine.errors import Problem, StarsWarning
from stars_engine.integrations import EngineFields, name_of_model, short_identity

# Keywords of calls that are no settings. LangChain reads `stream`.
OF_CALL = ("reward_prompt", "trace", "stream")
# Keywords of other providers that change nothing here: how their servers are reached, and by whom.
_REMOTE = (
    *("api_key", "base_url", "max_retries", "organization", "default_headers", "user"),
    *("service_tier", "store", "openai_api_key", "openai_api_base", "openai_organization"),
    *("default_query", "extra_headers", "http_client", "http_async_client", "stream_usage"),
)
# Their names for fields of ours.
_OTHER_NAMES = {
    "timeout": "deadline_s",
    "request_timeout": "deadline_s",
    "stop_sequences": "stop",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
}
_HINTS = {
    "logprobs": "rewards and attempts are in the metadata with trace=True",
    "top_logprobs": "rewards and attempts are in the metadata with trace=True",
    "model_kwargs": "every setting is a field; TransformersModel(model_kwargs=...) holds those of "
    "from_pretrained",
}


class StarsFields(EngineFields):
    """Fields of an adapter; LangChain's name `timeout` stands for `deadline_s`."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    _kind: ClassVar[Literal["llm", "chat"]]

    if TYPE_CHECKING:
        timeout: float | None = Field(default=None, description="LangChain's name of deadline_s")

    else:

        def __init__(self, **values: Any) -> None:
            super().__init__(**_own_names(values, type(self).__name__))

    # Callbacks and traces receive the keywords of calls, so secrets in them are sealed first.

    if not TYPE_CHECKING:  # keep LangChain's signatures for type checkers

        def bind(self, **kwargs: Any) -> Any:
            """Bind keywords of calls, with the secrets in model settings masked."""
            return super().bind(**self.without_plain_secrets(kwargs))

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
        given = _own_names(kwargs, type(self).__name__)
        return self.settings(**{**given, **({} if stop is None else {"stop": stop})})

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


def _own_names(values: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Replace the field names of other providers by the engine's, and drop what only servers need.

    One rule for constructors and calls: another name of a setting sets it, a keyword about a server
    is dropped with a warning, and everything else is an error.
    """
    given = _without_remote(dict(values))
    for other, name in _OTHER_NAMES.items():
        if other not in given:
            continue
        value = given.pop(other)
        if given.setdefault(name, value) != value:
            message = f"{other}={value!r} is another name for {name}, but {name} is "
            message += f"{given[name]!r}. Hint: give only one of them"
            raise ConfigError(owner, [Problem(other, message)])
    for name in given.keys() & _HINTS.keys():
        message = f"this model has no such setting. Hint: {_HINTS[name]}"
        raise ConfigError(owner, [Problem(name, message)])
    return given


def _without_remote(values: dict[str, Any]) -> dict[str, Any]:
    """Remove settings that only remote models need, with a warning."""
    for name in _REMOTE:
        if values.pop(name, None) is not None:
            message = (
                f"{name} is for remote models, and this model runs locally. Hint: leave it out"
            )
            warnings.warn(message, StarsWarning, stacklevel=4)
    return values
