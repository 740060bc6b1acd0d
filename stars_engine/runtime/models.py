"""The models of one runtime: loaded once, on its own thread, when they are first needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from stars_engine.backends.base import PromptedModel
from stars_engine.errors import ModelLoadError, describe_error
from stars_engine.rewards.base import RewardModel, describe
from stars_engine.runtime.calls import RewardSource

logger = logging.getLogger(__name__)


class Models:
    """A language model and the reward models that its callers use.

    Args:
        load: Loads the language model.
    """

    def __init__(self, load: Callable[[], PromptedModel]) -> None:
        self._load = load
        self._rewards: dict[str, RewardModel] = {}
        self._failures: dict[str, tuple[float, Exception]] = {}
        self.model: PromptedModel | None = None
        self.num_loads = 0

    def get(self, source: RewardSource, *, asked_s: float) -> tuple[PromptedModel, RewardModel]:
        """Return both models, loading what is missing.

        Whoever asked before an attempt to load failed shares its error; later ones try again.

        Args:
            source: The reward model.
            asked_s: When the caller asked, on the monotonic clock.
        """
        failed_s, failure = self._failures.get(source.key, (0.0, None))
        if failure is not None and asked_s <= failed_s:
            raise failure
        started_s = time.monotonic()
        try:
            if self.model is None:
                self.model = self._load()
                self.num_loads += 1
                logger.info("language model loaded in %.1f s", time.monotonic() - started_s)
            if source.key not in self._rewards:
                started_s = time.monotonic()
                reward = self._rewards[source.key] = source.load(self.model)
                seconds = time.monotonic() - started_s
                logger.info("reward %s loaded in %.1f s", describe(reward), seconds)
        except Exception as error:
            self._failures[source.key] = time.monotonic(), error
            raise
        except BaseException as error:  # other people's code exits: whoever waits for it must not
            failure = ModelLoadError(
                f"loading was ended by {describe_error(error)}. Cure: mend the checkpoint's or the "
                "reward's own code that did so"
            )
            self._failures[source.key] = time.monotonic(), failure
            raise failure from error
        return self.model, self._rewards[source.key]

    def forget(self, key: str) -> RewardModel | None:
        """Let go of a reward model that nobody uses any more."""
        return self._rewards.pop(key, None)
