"""The fields of an adapter, and the engines that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PrivateAttr, field_serializer
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticOmit

from stars_engine.config import SamplingParams, StarsConfig
from stars_engine.config.flat import FLAT_FIELDS, PARTS, ROOT_FIELDS, with_fields
from stars_engine.engine.engine import StarsEngine
from stars_engine.integrations.other_names import own_names
from stars_engine.integrations.setting_fields import SettingFields
from stars_engine.redaction import masked


class Unset(StrEnum):
    """Leaves a field to the config, as if it were not given; None is a value of some fields."""

    UNSET = "as in config"


UNSET = Unset.UNSET

_OF_TEMPLATE = ("max_tokens", "on_overflow")  # answers to conversations have other defaults

MAX_ENGINES = 8  # engines that one adapter holds for calls with other models


class EngineFields(SettingFields):
    """Fields of an adapter: a whole config, and each of its settings by name.

    A field that is set overrides the config. Reading one that is not set gives the value of the
    config. Values are validated like those of `StarsConfig`. Models are loaded at the first call,
    once for all adapters in the process.
    """

    config: StarsConfig = Field(
        default_factory=StarsConfig, description="models, thresholds and sampling"
    )
    trace: bool = Field(
        default=False,
        repr=False,
        description="report each segment with its attempts in the metadata of answers",
    )

    _engines: list[StarsEngine] = PrivateAttr(default_factory=list)  # least recently used first

    if TYPE_CHECKING:  # type checkers derive the keywords and their types from the fields
        timeout: float | None = Field(default=None, description="another name for deadline_s")

    else:

        def __init__(self, **values: Any) -> None:
            values = own_names(values, type(self).__name__)
            known = type(self).model_fields
            aliases = {field.alias for field in known.values()}
            unknown = [name for name in values if name not in known and name not in aliases]
            if unknown:
                given = {name: values[name] for name in unknown}
                with_fields(StarsConfig(), given, owner=type(self).__name__)
            if isinstance(values.get("config"), Mapping):
                values["config"] = StarsConfig(**values["config"])
            super().__init__(
                **{name: value for name, value in values.items() if value is not UNSET}
            )
            for name in FLAT_FIELDS - self.model_fields_set:  # `__getattr__` reads the config
                self.__dict__.pop(name, None)
            settings = self.settings()  # report invalid values now, not at the first call
            for name in ("model", "reward"):
                if _tells_secrets(self.__dict__.get(name)):
                    setattr(self, name, getattr(settings, name))

        def __getattr__(self, name: str) -> Any:
            """Return the config's value of a field that is not set."""
            return self._configured(name) if name in FLAT_FIELDS else super().__getattr__(name)

    def _configured(self, name: str) -> Any:
        settings = self.settings()
        if name in ROOT_FIELDS:
            return getattr(settings, name)
        [part] = [part for part, kind in PARTS.items() if name in kind.model_fields]
        values = getattr(settings, part)
        if values == "model" or name in _OF_TEMPLATE:  # only the files of the model know
            values = self._sampling(settings)
        return getattr(values, name)

    def _sampling(self, settings: StarsConfig) -> SamplingParams:
        """Return the sampling parameters of calls; with "model", those in the model's files."""
        if settings.sampling == "model":
            return self.engine(settings).facts.default_sampling()
        return settings.sampling

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON schema of the fields; those without a JSON form are left out."""
        return super().model_json_schema(*args, **{"schema_generator": _JsonFields, **kwargs})

    @field_serializer("config")
    def _what_was_given(self, config: StarsConfig) -> dict[str, Any]:
        """Dump only the fields that were set, so that a copy keeps its defaults as defaults.

        Default thresholds depend on the models, and adapters have their own defaults.
        """
        dumped = config.model_dump()
        given = {name: dumped[name] for name in dumped if name in config.model_fields_set}
        if "sampling" in given and config.sampling != "model":
            given["sampling"] = {
                name: given["sampling"][name]
                for name in given["sampling"]
                if name in config.sampling.model_fields_set
            }
        return given

    @classmethod
    def from_file(cls, path: str | Path, *, allow_imports: bool = True, **values: Any) -> Self:
        """Create an adapter from a config file; further fields override the file.

        Args:
            path: The file.
            allow_imports: Whether the file may name Python code to run; see
                `StarsConfig.from_file`.
            **values: Further fields.

        Raises:
            ConfigError: The file is missing or unreadable, a value is invalid, or the file names
                code although `allow_imports` is False.
        """
        return cls(config=StarsConfig.from_file(path, allow_imports=allow_imports), **values)

    def settings(self, **overrides: Any) -> StarsConfig:
        """Return the config with all fields, and the overrides of a call, applied.

        Raises:
            ConfigError: A name is unknown, or a value is invalid.
        """
        own = {name: getattr(self, name) for name in self.model_fields_set & FLAT_FIELDS}
        return with_fields(self.config, {**own, **overrides}, owner=type(self).__name__)

    def without_plain_secrets(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keywords of a call, with models that hold secrets as config objects.

        Config objects mask their secrets if a framework prints the keywords.

        Raises:
            ConfigError: A value of such a model is invalid.
        """
        open_ = {name for name in ("model", "reward") if _tells_secrets(given.get(name))}
        if not open_:
            return dict(given)
        parts = {name: given[name] for name in ("model", "reward") if name in given}
        settings = self.settings(**parts)
        return {**given, **{name: getattr(settings, name) for name in open_}}

    def engine(self, settings: StarsConfig | None = None) -> StarsEngine:
        """Return the shared engine for these settings; only models and engine limits matter.

        The adapter holds this engine, and the engines of the last `MAX_ENGINES` other settings.
        """
        settings = self.settings() if settings is None else settings
        engines = [engine for engine in self._engines if not engine.closed]
        found = next((e for e in engines if _same_parts(e.config, settings)), None)
        if found is None:
            found = StarsEngine.shared(settings)
            if len(engines) >= MAX_ENGINES:
                own = self.settings()
                others = [engine for engine in engines if not _same_parts(engine.config, own)]
                engines.remove(others[0])
        else:
            engines.remove(found)
        self._engines = [*engines, found]
        return found

    def load(self) -> Self:
        """Load the models now; later calls return at once."""
        self.engine().load()
        return self

    async def aload(self) -> Self:
        """Load the models now, without blocking the event loop."""
        await self.engine().aload()
        return self

    def close(self) -> None:
        """Close the engines; the next call gets a new one."""
        engines, self._engines = self._engines, []
        for engine in engines:
            engine.close()

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name in ("config", *sorted(FLAT_FIELDS)):
            if name in self.model_fields_set:
                yield name, getattr(self, name)

    # Copies have their own engines, so closing one does not affect the others.

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._engines = []  # noqa: SLF001 - its own class
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        copied._engines = []  # noqa: SLF001 - likewise
        return copied


def _same_parts(a: StarsConfig, b: StarsConfig) -> bool:
    """Whether one engine serves both configs; an engine has one prompt format."""
    names = ("model", "reward", "engine", "prompt_format", "chat_template_kwargs")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def _tells_secrets(given: object) -> bool:
    """Whether a mapping holds secrets, which all who see it can read."""
    return isinstance(given, Mapping) and masked(given) != given


class _JsonFields(GenerateJsonSchema):
    """Leaves out what has no JSON form, such as callables of frameworks."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        raise PydanticOmit
