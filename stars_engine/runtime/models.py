"""The models of one runtime: loaded once, on its own thread, when they are first needed."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from stars_engine.backends.base import PromptedModel
from stars_engine.errors import Interrupted, ModelLoadError, describe_error
from stars_engine.rewards.base import RewardModel, describe
from stars_engine.runtime.request_group import RewardSource

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


class Failure(NamedTuple):
    """An attempt to load that failed, on the monotonic clock, and with what."""

    failed_s: float
    error: Exception


class Models:
    """A language model and the reward models that its callers use.

    Args:
        load: Loads the language model.
    """

    def __init__(self, load: Callable[[], PromptedModel]) -> None:
        self._load = load
        self._rewards: dict[str, RewardModel] = {}
        self._failures: dict[str | None, Failure] = {}  # None: of the language model
        self.model: PromptedModel | None = None
        self.num_loads = 0

    def get(self, source: RewardSource, *, asked_s: float) -> tuple[PromptedModel, RewardModel]:
        """Return both models, loading what is missing.

        Whoever asked before an attempt to load failed shares its error; later ones try again.

        Args:
            source: The reward model.
            asked_s: When the caller asked, on the monotonic clock.
        """
        model = self.model
        if model is None:
            model = self.model = self._attempt(None, self._load, asked_s, lambda _: "model")
            self.num_loads += 1
        reward = self._rewards.get(source.key)
        if reward is None:
            reward = self._attempt(source.key, lambda: source.load(model), asked_s, describe)
            self._rewards[source.key] = reward
        return model, reward

    def peek(self, key: str) -> tuple[PromptedModel, RewardModel] | None:
        """Return both models if they are there; from any thread."""
        model, reward = self.model, self._rewards.get(key)
        return None if model is None or reward is None else (model, reward)

    def forget(self, key: str) -> RewardModel | None:
        """Let go of a reward model that nobody uses any more."""
        self._failures.pop(key, None)
        return self._rewards.pop(key, None)

    def forget_all(self) -> None:
        """Let go of everything."""
        self.model = None
        self._rewards.clear()
        self._failures.clear()

    def _attempt(
        self,
        key: str | None,
        load: Callable[[], Loaded],
        asked_s: float,
        name_of: Callable[[Loaded], str],
    ) -> Loaded:
        failure = self._failures.get(key)
        if failure is not None and asked_s <= failure.failed_s:
            raise without_frames(failure.error)
        started_s = time.monotonic()
        try:
            loaded = load()
        except Exception as error:
            self._failures[key] = Failure(time.monotonic(), without_frames(error))
            raise
        except Interrupted:
            raise
        except BaseException as error:  # other people's code exits: whoever waits for it must not
            ended = ModelLoadError(
                f"loading was ended by {describe_error(error)}. Cure: mend the checkpoint's or the "
                "reward's own code that did so"
            )
            self._failures[key] = Failure(time.monotonic(), without_frames(ended))
            raise ended from error
        self._failures.pop(key, None)
        what = "language" if key is None else "reward"
        logger.info("%s %s loaded in %.1f s", what, name_of(loaded), time.monotonic() - started_s)
        return loaded


def without_frames(error: Exception) -> Exception:
    """Return an equal error of its own: the frames of the first hold half of a loaded model."""
    try:
        again = copy.copy(error)
    except Exception:  # noqa: BLE001 - exceptions of others need not be made to be copied
        again = error
    if type(again) is not type(error) or again is error:
        again = ModelLoadError(f"{type(error).__name__}: {error}")
    again.__traceback__ = again.__cause__ = again.__context__ = None
    return again
