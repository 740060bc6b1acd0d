"""The models of one runtime: loaded once, on the engine's thread, when they are first needed."""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from stars_engine.backends.base import PromptedModel
from stars_engine.core.request_errors import as_request_error
from stars_engine.errors import Interrupted, ModelLoadError, describe_error, is_for_program
from stars_engine.out_of_memory import keeps_cache, memory_usage
from stars_engine.rewards.base import RewardModel, describe
from stars_engine.rewards.reward_requests import single_models
from stars_engine.runtime.object_checks import check_model, check_reward
from stars_engine.runtime.request_group import RewardSource

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class LoadFailure(NamedTuple):
    """A failed attempt to load: its error, and its time on the monotonic clock."""

    failed_s: float
    error: Exception


class Models:
    """A language model and the reward models that are used with it.

    Args:
        load: Loads the language model.
        max_cache_bytes: The bound of each cache; None for a default.
    """

    def __init__(
        self, load: Callable[[], PromptedModel], *, max_cache_bytes: int | None = None
    ) -> None:
        self._load, self._max_cache_bytes = load, max_cache_bytes
        self._rewards: dict[str, RewardModel] = {}
        self._failures: dict[str | None, LoadFailure] = {}  # None: of the language model
        self.model: PromptedModel | None = None
        self.num_loads = 0

    def get(self, source: RewardSource, *, requested_s: float) -> tuple[PromptedModel, RewardModel]:
        """Return both models; load those that are missing.

        If loading fails, all requests made before that get the error; later requests try again.

        Args:
            source: The source of the reward model.
            requested_s: When the caller requested the models, on the monotonic clock.
        """
        model = self.model
        if model is None:
            model = self.model = self._load_once(
                None, self._load_model, requested_s, lambda _: "model"
            )
            self.num_loads += 1
        reward = self._rewards.get(source.key)
        if reward is None:
            load = partial(self._load_reward, source, model)
            reward = self._load_once(source.key, load, requested_s, describe)
            self._rewards[source.key] = reward
        self._limit_caches(model, reward)
        return model, reward

    @property
    def loaded(self) -> list[object]:
        """All models that are loaded. May be called from any thread."""
        models = [] if self.model is None else [self.model]
        rewards = tuple(self._rewards.values())
        return [*models, *(part for reward in rewards for part in single_models(reward))]

    def peek(self, key: str) -> tuple[PromptedModel, RewardModel] | None:
        """Return both models if they are loaded. May be called from any thread."""
        model, reward = self.model, self._rewards.get(key)
        return None if model is None or reward is None else (model, reward)

    def memory_usage(self) -> dict[str, int]:
        """Return the bytes that the models report, by holder. May be called from any thread."""
        found = Counter({f"model.{key}": size for key, size in memory_usage(self.model).items()})
        rewards = {id(r): r for each in tuple(self._rewards.values()) for r in single_models(each)}
        for reward in rewards.values():
            for holder, size in memory_usage(reward).items():
                found[f"reward.{holder}"] += size
        return dict(found)

    def interrupt(self) -> None:
        """Let the language model give up what it drafts, if it can. May be called from any thread.

        Its errors are logged: they must not keep the process from ending other engines.
        """
        try:
            getattr(self.model, "interrupt", lambda: None)()
        except BaseException as error:
            if is_for_program(error):
                raise
            logger.exception("The language model could not be interrupted")

    def unload(self, key: str) -> RewardModel | None:
        """Unload a reward model and return it."""
        self._failures.pop(key, None)
        return self._rewards.pop(key, None)

    def unload_all(self) -> None:
        """Unload all models."""
        self.model = None
        self._rewards.clear()
        self._failures.clear()

    def _load_model(self) -> PromptedModel:
        model = self._load()
        check_model(model)
        return model

    def _load_reward(self, source: RewardSource, model: PromptedModel) -> RewardModel:
        reward = source.load(model)
        check_reward(reward)
        return reward

    def _limit_caches(self, model: PromptedModel, reward: RewardModel) -> None:
        """Set the bound at each call, since engines may share a model."""
        for each in (model, *single_models(reward)):
            try:
                if keeps_cache(each):
                    each.limit_cache(self._max_cache_bytes)
            except BaseException as error:  # noqa: BLE001 - custom models are third-party code
                problem = as_request_error(error, "limiting the cache of a model")
                raise problem from problem.__cause__

    def _load_once(
        self,
        key: str | None,
        load: Callable[[], Loaded],
        requested_s: float,
        name_of: Callable[[Loaded], str],
    ) -> Loaded:
        failure = self._failures.get(key)
        if failure is not None and requested_s <= failure.failed_s:
            raise without_traceback(failure.error)
        started_s = time.monotonic()
        try:
            loaded = load()
        except Exception as error:
            self._failures[key] = LoadFailure(time.monotonic(), without_traceback(error))
            raise
        except Interrupted:
            raise
        except BaseException as error:  # third-party code called exit; the caller must not exit
            ended = ModelLoadError(
                f"loading ended with {describe_error(error)}. Hint: fix the code of the checkpoint "
                "or the reward that raised this"
            )
            self._failures[key] = LoadFailure(time.monotonic(), without_traceback(ended))
            raise ended from error
        self._failures.pop(key, None)
        what = "language" if key is None else "reward"
        logger.info("%s %s loaded in %.1f s", what, name_of(loaded), time.monotonic() - started_s)
        return loaded


def without_traceback(error: Exception) -> Exception:
    """Return a copy of an error without traceback, whose frames may hold part of a model."""
    try:
        again = copy.copy(error)
    except Exception:  # noqa: BLE001 - not all exceptions can be copied
        again = error
    if type(again) is not type(error) or again is error:
        again = ModelLoadError(f"{type(error).__name__}: {error}")
    again.__traceback__ = again.__cause__ = again.__context__ = None
    return again
