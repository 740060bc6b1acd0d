"""Random pydantic models: recursive, generic, discriminated, aliased, with formats and defaults.

A model is written as Python source, so that a seed that fails can be read: `random_source(seed)`.
"""

from __future__ import annotations

import random
import sys
import types
from typing import cast

from pydantic import BaseModel

_HEADER = '''\
"""Random models."""

from __future__ import annotations

import dataclasses
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union
from uuid import UUID

from pydantic import AliasChoices, AnyUrl, BaseModel, ConfigDict, Field, RootModel, SecretStr
from typing_extensions import TypedDict

T = TypeVar("T")
U = TypeVar("U")


class Box(BaseModel, Generic[T]):
    """A value, boxed."""

    content: T


class Couple(BaseModel, Generic[T, U]):
    first: T
    second: Optional[U] = None


class Colour(str, Enum):
    """A colour."""

    RED = "red"
    DEEP_BLUE = "deep blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 10


class Mixed(Enum):
    ONE = 1
    TWO = "two"
'''

# Annotations of single values, each with a default that is valid.
_PLAIN = [
    ("str", "'x'"),
    ("int", "3"),
    ("float", "2.5"),
    ("bool", "False"),
    ("None", "None"),
    ("Any", "None"),
]
_CONSTRAINED = [
    ("Annotated[str, Field(max_length=8)]", "'y'"),
    ("Annotated[str, Field(min_length=1, max_length=5)]", "'z'"),
    (r"Annotated[str, Field(pattern=r'^[a-z]{2,5}$')]", "'abc'"),
    (r"Annotated[str, Field(pattern=r'^\d{3}-\d{2}$')]", "'123-45'"),
    (r"Annotated[str, Field(pattern=r'^[^\s@]+@[a-z]+\.(com|org)$', max_length=24)]", "'a@b.com'"),
    ("Annotated[int, Field(ge=0, le=120)]", "7"),
    ("Annotated[int, Field(gt=-5, multiple_of=3)]", "3"),
    ("Annotated[int, Field(lt=10**6)]", "-1"),
    ("Annotated[float, Field(ge=0.0, lt=1.0)]", "0.5"),
    ("Annotated[float, Field(gt=-1.5, le=1e6)]", "0.0"),
    ("Annotated[Decimal, Field(ge=0, le=100)]", "Decimal(1)"),
]
_LITERALS = [
    ("Literal['a']", "'a'"),
    ("Literal['yes', 'no', \"don't know\"]", "'yes'"),
    ("Literal[1, 2, 'three', True, None]", "2"),
    ("Literal['Größe', 'x\\ny']", "'Größe'"),
    ("Colour", "Colour.RED"),
    ("Level", "Level.HIGH"),
    ("Mixed", "Mixed.TWO"),
]
_FORMATS = [
    ("date", "date(2024, 2, 29)"),
    ("datetime", "datetime(2024, 1, 1)"),
    ("time", "time(12, 30)"),
    ("timedelta", "timedelta(days=1)"),
    ("UUID", "UUID(int=1)"),
    ("Decimal", "Decimal('1.5')"),
    ("Path", "Path('a/b')"),
    ("IPv4Address", "IPv4Address('127.0.0.1')"),
    ("IPv6Address", "IPv6Address('::1')"),
    ("SecretStr", "SecretStr('s')"),
    ("AnyUrl", "AnyUrl('http://a.b/')"),
]
# What no grammar can hold: a schema with one of these is refused.
_UNHELD = [
    ("set[str]", "set()"),
    (r"Annotated[str, Field(json_schema_extra={'not': {'pattern': '^x'}})]", "'a'"),
    ("Annotated[list[int], Field(json_schema_extra={'contains': {'const': 1}})]", "[1]"),
]
_NAMES = ["name", "kids", "n", "a_b", "value", "tags", "note", "x1", "owner", "place", "when_at"]
_ALIASES = ["fieldName", "with space", "größe", "x-y", "$id", "type", "title", "properties"]


class _Writer:
    """Writes the classes of one module."""

    def __init__(self, seed: int, *, unsupported: bool) -> None:
        self.rng = random.Random(seed)
        self.unsupported = unsupported
        self.classes: list[str] = []
        self.num_classes = 0
        self.open: list[str] = []  # classes that are being written: these can recur

    def annotation(self, depth: int) -> tuple[str, str | None]:
        """Return a type and a default; None where it is easier to have none."""
        rng = self.rng
        leaves = [_PLAIN, _PLAIN, _CONSTRAINED, _LITERALS, _FORMATS, _FORMATS]
        if depth >= 3 or rng.random() < 0.45:
            if self.unsupported and rng.random() < 0.04:
                return rng.choice(_UNHELD)
            return rng.choice(rng.choice(leaves))
        return rng.choice(
            [
                self._list,
                self._list,
                self._dict,
                self._tuple,
                self._optional,
                self._union,
                self._model,
                self._model,
                self._generic,
                self._discriminated,
                self._recursive,
                self._other_class,
            ]
        )(depth + 1)

    def _list(self, depth: int) -> tuple[str, str | None]:
        inner, _ = self.annotation(depth)
        size = self.rng.choice(["", "", "max_length=2", "min_length=1, max_length=3"])
        if size:
            empty = "[]" if "min" not in size else None
            return f"Annotated[list[{inner}], Field({size})]", empty
        return f"list[{inner}]", "[]"

    def _dict(self, depth: int) -> tuple[str, str | None]:
        inner, _ = self.annotation(depth)
        key = self.rng.choice(
            [
                "str",
                "str",
                "Literal['p', 'q']",
                "Colour",
                r"Annotated[str, Field(pattern='^[a-c]{1,2}$')]",
                "Annotated[str, Field(max_length=3)]",
                "UUID",
            ]
        )
        return f"dict[{key}, {inner}]", "{}"

    def _tuple(self, depth: int) -> tuple[str, str | None]:
        if self.rng.random() < 0.3:
            return f"tuple[{self.annotation(depth)[0]}, ...]", "()"
        inner = [self.annotation(depth)[0] for _ in range(self.rng.randint(1, 3))]
        return f"tuple[{', '.join(inner)}]", None

    def _optional(self, depth: int) -> tuple[str, str | None]:
        return f"Optional[{self.annotation(depth)[0]}]", "None"

    def _union(self, depth: int) -> tuple[str, str | None]:
        (first, default), (second, _) = self.annotation(depth), self.annotation(depth)
        return f"Union[{first}, {second}]", default

    def _model(self, depth: int) -> tuple[str, str | None]:
        return self.model(depth), None

    def _generic(self, depth: int) -> tuple[str, str | None]:
        if self.rng.random() < 0.5:
            return f"Box[{self.annotation(depth)[0]}]", None
        return f"Couple[{self.annotation(depth)[0]}, {self.annotation(depth)[0]}]", None

    def _recursive(self, depth: int) -> tuple[str, str | None]:
        """Return a type that leads back to a class that is being written, and may end."""
        name = self.rng.choice(self.open)
        forms = [
            (f"list[{name}]", "[]"),
            (f"Optional[{name}]", "None"),
            (f"dict[str, {name}]", "{}"),
            (f"list[Optional[{name}]]", "[]"),
        ]
        return self.rng.choice(forms)

    def _discriminated(self, depth: int) -> tuple[str, str | None]:
        """Return a union of models with a tag, half of them with the tag as a default."""
        tag = self.rng.choice(["kind", "type_", "event"])
        names = []
        for value in self.rng.sample(["cat", "dog", "it is", "n1"], self.rng.randint(2, 3)):
            name = self.name("Case")
            default = f" = {value!r}" if self.rng.random() < 0.6 else ""
            fields = [f"    {tag}: Literal[{value!r}]{default}", *self.fields(name, depth, tag)]
            self.classes.append("\n".join([f"class {name}(BaseModel):", *fields]))
            names.append(name)
        union = f"Annotated[Union[{', '.join(names)}], Field(discriminator={tag!r})]"
        return self.rng.choice([(union, None), (f"list[{union}]", "[]")])

    def _other_class(self, depth: int) -> tuple[str, str | None]:
        """Return a dataclass, a TypedDict, a NamedTuple or a model without fields of its own."""
        name = self.name("Plain")
        inner = [self.annotation(depth)[0] for _ in range(self.rng.randint(1, 2))]
        fields = [f"    f{index}: {annotation}" for index, annotation in enumerate(inner)]
        head = self.rng.choice(
            ["@dataclasses.dataclass\nclass {}:", "class {}(TypedDict):", "class {}(NamedTuple):"]
        )
        if self.rng.random() < 0.25:
            self.classes.append(f"class {name}(RootModel):\n    root: {inner[0]}")
        else:
            self.classes.append("\n".join([head.format(name), *fields]))
        return name, None

    def name(self, stem: str) -> str:
        self.num_classes += 1
        return f"{stem}{self.num_classes}"

    def fields(self, name: str, depth: int, *taken: str) -> list[str]:
        rng = self.rng
        self.open.append(name)
        lines = []
        aliases = rng.sample(_ALIASES, 3)
        num_fields = rng.randint(1, 4 if depth < 2 else 2)
        for field in rng.sample(_NAMES, num_fields):
            if field in taken:
                continue
            annotation, default = self.annotation(depth)
            infos = []
            if default is not None and rng.random() < 0.4:
                infos.append(f"default={default}")
            if rng.random() < 0.2 and aliases:
                form = rng.choice(["alias={!r}", "validation_alias=AliasChoices({!r}, 'other')"])
                infos.append(form.format(aliases.pop()))
            if rng.random() < 0.2:
                infos.append("description='What it is.'")
            if rng.random() < 0.1:
                infos.append("title='A title'")
            lines.append(
                f"    {field}: {annotation}" + f" = Field({', '.join(infos)})" * bool(infos)
            )
        self.open.pop()
        return lines

    def model(self, depth: int) -> str:
        name = self.name("Model")
        fields = self.fields(name, depth)
        config = self.rng.choice(
            ["", "", "", "extra='forbid'", "title='Other title'", "populate_by_name=True"]
        )
        lines = [f"class {name}(BaseModel):"]
        if config:
            lines.append(f"    model_config = ConfigDict({config})")
        self.classes.append("\n".join([*lines, *fields]))
        return name


def random_source(seed: int, *, unsupported: bool = True) -> str:
    """Return the module that `random_model` runs: the model is its `Root`."""
    writer = _Writer(seed, unsupported=unsupported)
    root = writer.model(0)
    if writer.rng.random() < 0.1:
        root = f"Box[{root}]"
    return "\n\n\n".join([_HEADER.rstrip(), *writer.classes, f"Root = {root}"]) + "\n"


def random_model(seed: int, *, unsupported: bool = True) -> type[BaseModel]:
    """Return a random pydantic model.

    Args:
        seed: The same seed gives the same model.
        unsupported: Whether a few models may have parts that no grammar can hold, such as sets.
    """
    name = f"tests._random_model_{seed}_{unsupported}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        sys.modules[name] = module  # where pydantic and pickle look names up
        source = random_source(seed, unsupported=unsupported)
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
        for value in list(vars(module).values()):
            if getattr(value, "__module__", "") == name and hasattr(value, "model_rebuild"):
                value.model_rebuild()
    return cast("type[BaseModel]", vars(sys.modules[name])["Root"])
