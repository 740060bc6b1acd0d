"""Keywords of other providers: one rule for all adapters, in constructors and calls."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from stars_engine.errors import ConfigError, Problem, StarsWarning

# Other names of settings.
OTHER_NAMES = {
    "timeout": "deadline_s",
    "request_timeout": "deadline_s",
    "stop_sequences": "stop",
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "num_predict": "max_tokens",
}
# How a provider's servers are reached, and by whom; these change nothing here.
REMOTE = (
    *("api_key", "api_base", "api_version", "base_url", "organization", "user"),
    *("openai_api_key", "openai_api_base", "openai_organization", "service_tier", "store"),
    *("max_retries", "default_headers", "extra_headers", "default_query", "stream_usage"),
    *("http_client", "http_async_client", "async_http_client", "reuse_client"),
)
_HINTS = {
    "logprobs": "rewards and attempts are in the metadata with trace=True",
    "top_logprobs": "rewards and attempts are in the metadata with trace=True",
    "model_kwargs": "every setting is a field; TransformersModel(model_kwargs=...) holds those of "
    "from_pretrained",
}


def own_names(values: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return keywords under this project's names.

    Another name of a setting sets it, a keyword about a server is dropped with a warning, and
    everything else is an error, here or where the settings are validated.

    Args:
        values: Keywords of a constructor or a call.
        owner: The object that accepts them, for messages.

    Raises:
        ConfigError: A keyword has no equivalent here, or contradicts another one.
    """
    given = dict(values)
    for name in REMOTE:
        if given.pop(name, None) is not None:
            warnings.warn(
                f"{name} is for remote models, and this model runs locally. Hint: leave it out",
                StarsWarning,
                stacklevel=4,
            )
    for other, name in OTHER_NAMES.items():
        value = given.pop(other, None)
        if value is None:  # in other providers, it means "not given"
            continue
        if given.get(name) is None:
            given[name] = value
        elif given[name] != value:
            message = f"{other}={value!r} is another name for {name}, but {name} is "
            message += f"{given[name]!r}. Hint: give only one of them"
            raise ConfigError(owner, [Problem(other, message)])
    problems = [
        Problem(name, f"this model has no such setting. Hint: {hint}")
        for name, hint in _HINTS.items()
        if given.get(name) is not None
    ]
    if problems:
        raise ConfigError(owner, problems)
    return {name: value for name, value in given.items() if name not in _HINTS}
