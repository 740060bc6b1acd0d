"""The models that the server serves, by name, and whether they are ready."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping

from stars_engine.config import AlignParams, StarsConfig
from stars_engine.engine.engine import StarsEngine
from stars_engine.errors import describe_error
from stars_engine.server.errors import ApiError, unavailable

logger = logging.getLogger(__name__)


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
        self.fingerprint = f"stars-{config.content_hash()}"

    @property
    def raw_engine(self) -> StarsEngine:
        """Answers texts, which it continues; shares the models of `engine`."""
        return self._raw_engine

    @property
    def state(self) -> str:
        """`loading`, `ready` or `failed`."""
        if self.error is not None:
            return "failed"
        return "loading" if self.align is None else "ready"

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
        """Load the models, and calibrate thresholds if the config asks for it."""
        try:
            await self.engine.aload()
            await self._raw_engine.aload()
            self.align = await self.engine.aresolved_align()
            logger.info("The model %r is ready", self.name)
        except Exception as error:  # noqa: BLE001 - loading runs third-party code
            self.error = error
            logger.error("The model %r could not be loaded: %s", self.name, describe_error(error))  # noqa: TRY400

    def close(self) -> None:
        """Release the models."""
        self.engine.close()
        self._raw_engine.close()


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
            message = f"The model {name!r} does not exist. Hint: use one of {allowed}"
            raise ApiError(404, message, code="model_not_found", param="model")
        return self._models[name]

    async def load(self) -> None:
        """Load all models, one after the other in each runtime."""
        await asyncio.gather(*(model.load() for model in self))

    def close(self) -> None:
        """Release all models."""
        for model in self:
            model.close()
