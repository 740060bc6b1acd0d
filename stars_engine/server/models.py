"""The models that the server serves, by name, and whether they are ready."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Mapping

from stars_engine.config import AlignParams, StarsConfig
from stars_engine.engine.engine import StarsEngine
from stars_engine.errors import ModelLoadError, describe_error
from stars_engine.server.errors import ApiError, server_error_of, shortened, unavailable

logger = logging.getLogger(__name__)

_RETRY_S = 5.0  # until models behind servers that do not answer are loaded again
_CHECKED_S = 1.0  # for which the answers of servers about their health hold


class ServedModel:
    """One model with its thresholds, under the name that clients use.

    Args:
        name: The name.
        config: Its configuration. A full queue raises an error instead of waiting.

    Attributes:
        name: The name.
        engine: Answers conversations and texts.
        created: When it was made, in seconds since 1970.
        error: Why it could not be loaded, or None.
        unavailable: URLs of its servers that did not answer when they were last asked.
        align: The acceptance settings, with calibrated thresholds; None while it is loading.
    """

    def __init__(self, name: str, config: StarsConfig) -> None:
        params = config.engine.replace(on_full="raise")
        config = config.replace(engine=params)
        self.name = name
        self.engine = StarsEngine.shared(config)
        # `/v1/completions` continues texts, whatever the model's chat template.
        self._raw_engine = StarsEngine.shared(config.replace(prompt_format="raw"))
        self.created = int(time.time())
        self.error: BaseException | None = None
        self.align: AlignParams | None = None
        self.unavailable: list[str] = []
        self._checking = asyncio.Lock()
        self._checked_s = -math.inf
        self.fingerprint = f"stars-{config.content_hash()}"

    @property
    def raw_engine(self) -> StarsEngine:
        """Answers texts, which it continues; shares the models of `engine`."""
        return self._raw_engine

    @property
    def state(self) -> str:
        """`loading`, `ready`, `failed`, or `unavailable` if its servers do not answer."""
        if self.error is not None:
            return "failed"
        if self.align is None:
            return "loading"
        return "unavailable" if self.unavailable else "ready"

    @property
    def ready_align(self) -> AlignParams:
        """The acceptance settings.

        Raises:
            ApiError: The model is loading, or could not be loaded.
        """
        if self.error is not None:
            raise unavailable(f"The model {self.name!r} could not be loaded", "model_unavailable")
        if self.align is None:
            message = f"The model {self.name!r} is loading. Hint: retry later; /readyz reports when"
            raise unavailable(message, "model_loading")
        return self.align

    async def load(self) -> None:
        """Load the models, and calibrate thresholds if the config asks for it.

        If a model server does not answer, loading is tried again, since it may start later.
        """
        while self.state == "loading":
            try:
                await self.engine.aload()
                await self._raw_engine.aload()
                self.align = await self.engine.aresolved_align()
                logger.info("The model %r is ready", self.name)
            except Exception as error:  # noqa: BLE001 - loading runs third-party code
                if _may_recover(error):
                    logger.warning("The model %r waits: %s", self.name, describe_error(error))
                    await asyncio.sleep(_RETRY_S)
                    continue
                self.error = error
                logger.error(  # noqa: TRY400
                    "The model %r could not be loaded: %s", self.name, describe_error(error)
                )

    async def check(self) -> None:
        """Ask the servers of a ready model for their health, at most once a second."""
        async with self._checking:
            if self.align is None or time.monotonic() < self._checked_s + _CHECKED_S:
                return
            before, self.unavailable = self.unavailable, await self.engine.aunavailable_servers()
            self._checked_s = time.monotonic()
            for urls in set(self.unavailable) - set(before):
                logger.error("The model %r is not available: %s does not answer", self.name, urls)
            if before and not self.unavailable:
                logger.info("The model %r is available again", self.name)

    def close(self) -> None:
        """Release the models, without waiting for those that are still loading."""
        timeout_s = 0.0 if self.state == "loading" else None
        self.engine.close(timeout_s)
        self._raw_engine.close(timeout_s)


class ServedModels:
    """All models of a server.

    Args:
        configs: Their configurations, by the names that clients use.
    """

    def __init__(self, configs: Mapping[str, StarsConfig]) -> None:
        self._models = {name: ServedModel(name, config) for name, config in configs.items()}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str) -> ServedModel:
        """Return a model.

        Raises:
            ApiError: There is no model of this name.
        """
        if name not in self._models:
            allowed = ", ".join(map(repr, self._models))
            message = f"The model {shortened(name)} does not exist. Hint: use one of {allowed}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return self._models[name]

    async def check(self) -> None:
        """Note which models are not available; see `ServedModel.check`."""
        await asyncio.gather(*(model.check() for model in self))

    async def load(self) -> None:
        """Load all models, one after the other in each runtime."""
        await asyncio.gather(*(model.load() for model in self))

    def close(self) -> None:
        """Release all models."""
        for model in self:
            model.close()


def _may_recover(error: Exception) -> bool:
    """Whether loading may succeed later, because a server did not answer."""
    if isinstance(error, ModelLoadError):
        return error.may_recover
    found = server_error_of(error)
    return found is not None and found.fault != "bad_answer"
