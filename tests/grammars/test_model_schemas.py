"""Types of pydantic models: pydantic validates everything that their grammars write."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pydantic
import pytest
from annotated_types import (
    IsAscii,
    IsDigits,
    IsFinite,
    LowerCase,
    MultipleOf,
    Not,
    Predicate,
    UpperCase,
)
from pydantic import AliasPath, BaseModel, ConfigDict, Field, create_model, field_validator
from pydantic_core import core_schema
from typing_extensions import TypeAliasType

from stars_engine.schema_formats.library_types import NARROWED
from tests.support.grammars import accepts, byte_grammars, held, texts

T = TypeVar("T")


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Word(Enum):
    YES = "yes"
    NUMBER = 3


class Pair(NamedTuple):
    left: int
    right: str


class Box(BaseModel, Generic[T]):
    content: T


class Tree(BaseModel):
    name: Literal["a"]
    kids: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    value: int


class Codes(Enum):
    """One of the values is not that of any JSON."""

    TEXT = "text"
    RAW = b"raw"


class Untypable(Enum):
    RAW = b"raw"


class Name(str):
    """A type whose validator accepts all that its schema allows."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(cls, handler(str))


class Article(str):
    """A type whose validator accepts less than its schema allows."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(cls.check, handler(str))

    @classmethod
    def check(cls, value: str) -> str:
        assert value.startswith("A-")
        return value


Strings = TypeAliasType("Strings", "dict[str, Strings] | list[Strings] | None")
Pet = Annotated[Union[Cat, Dog], Field(discriminator="kind")]  # noqa: UP007

TYPES: list[Any] = [
    *(bool, int, float, str, bytes, Any, object, complex, date, datetime, time, timedelta),
    *(UUID, pydantic.UUID1, pydantic.UUID4, pydantic.UUID7, Path, PurePosixPath, re.Pattern),
    *(ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network),
    *(ipaddress.IPv6Network, ipaddress.IPv4Interface, ipaddress.IPv6Interface),
    *(pydantic.IPvAnyAddress, pydantic.IPvAnyInterface, pydantic.IPvAnyNetwork),
    *(pydantic.AnyUrl, pydantic.HttpUrl, pydantic.FileUrl, pydantic.WebsocketUrl),
    *(pydantic.RedisDsn, pydantic.PostgresDsn, pydantic.MongoDsn, pydantic.KafkaDsn),
    *(pydantic.Base64Bytes, pydantic.Base64UrlBytes, pydantic.SecretStr, pydantic.SecretBytes),
    *(pydantic.NaiveDatetime, pydantic.AwareDatetime, pydantic.FiniteFloat),
    *(pydantic.PositiveFloat, pydantic.NonPositiveFloat, pydantic.NegativeInt, pydantic.StrictInt),
    *(Decimal, Annotated[Decimal, Field(max_digits=5, decimal_places=2)]),
    *(Annotated[Decimal, Field(decimal_places=2)], Annotated[Decimal, Field(max_digits=5)]),
    *(Annotated[Decimal, Field(gt=0, lt=1)], Annotated[Decimal, Field(multiple_of=Decimal("0.5"))]),
    *(Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=-0.1, le=0.3)]),
    *(Annotated[int, Field(gt=10**20)], Annotated[int, Field(multiple_of=12, gt=5, lt=100)]),
    *(set[str], frozenset[int], Annotated[set[int], Field(min_length=1)]),
    *(dict[int, str], dict[float, int], dict[bool, int], dict[date, int], dict[UUID, int]),
    *(dict[Literal["a", "b"], int], dict[Word, int], dict[str, int], Mapping[str, int]),
    Annotated[dict[str, int], Field(min_length=1, max_length=2)],
    *(tuple[int, str], tuple[int, ...], tuple[()], Pair, Sequence[int], deque[int]),
    *(Counter[str], OrderedDict[str, int], Annotated[list[int], Field(min_length=2, max_length=3)]),
    *(Literal["a", 1, True], Size, Word, Word | None, int | list[str]),
    *(Annotated[str, Field(pattern=r"^\w+$", max_length=4)], Annotated[str, Field(pattern="b$")]),
    *(Hashable, pydantic.PastDate, pydantic.FutureDate, pydantic.PastDatetime),
    *(pydantic.FutureDatetime, pydantic.Base64Str, pydantic.Base64UrlStr, pydantic.ByteSize),
    *(
        pydantic.AnyHttpUrl,
        pydantic.FtpUrl,
        pydantic.AmqpDsn,
        pydantic.MySQLDsn,
        ZoneInfo,
        Fraction,
    ),
    Annotated[date, Field(gt=date(2019, 12, 31), le=date(2020, 3, 1))],
    Annotated[date, Field(ge=date(1999, 9, 9))],
    Annotated[
        datetime,
        Field(gt=datetime(2020, 1, 30, 12, tzinfo=UTC), lt=datetime(2021, 1, 1, tzinfo=UTC)),
    ],
    Annotated[time, Field(ge=time(9, 59, 58), lt=time(12))],
    Annotated[timedelta, Field(gt=timedelta(hours=1), le=timedelta(days=2))],
    *(
        Annotated[bytes, Field(max_length=4)],
        Annotated[Decimal, Field(max_digits=2, decimal_places=2)],
    ),
    Annotated[Decimal, Field(ge=0, lt=100, max_digits=6, decimal_places=2)],
    *(
        Annotated[float, Field(multiple_of=0.1)],
        Annotated[float, Field(multiple_of=0.01, ge=0, le=5)],
    ),
    *(re.Pattern[str], pydantic.StrictBytes, set[tuple[int, ...]], set[Frozen], set[Any], set),
    *(pydantic.constr(strip_whitespace=True, min_length=2), LowerCase[str], UpperCase[str]),
    *(IsDigits[str], IsAscii[str], IsFinite[float], list[pydantic.OnErrorOmit[int]], Codes),
    Annotated[str, Field(pattern="^.{2,4}$"), pydantic.StringConstraints(strip_whitespace=True)],
    *(pydantic.condecimal(gt=0, max_digits=4), pydantic.condecimal(lt=-1, ge=-3, max_digits=2)),
    *(dict[int | None, int], dict[Fraction, int], dict[int | str, int], Name, Strings),
    *(Box[bool], Box[Box[int]], Tree, Pet, list[Pet], Pet | None, dict[str, Pet]),
]


@pytest.mark.parametrize("annotation", TYPES, ids=str)
def test_types(annotation: Any) -> None:
    model = create_model("M", value=(annotation, ...))
    state = held(model, compact=True)
    assert state is not None
    drawn = texts(state, 40)
    assert len(drawn) >= 5
    for text in drawn:
        model.model_validate_json(text)


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: date
    raw: bytes
    pair: tuple[int, UUID]
    size: Size


class Omitting(BaseModel):
    """Pydantic requires a field that is omitted on error."""

    count: pydantic.OnErrorOmit[int]


class WrongDefault(BaseModel):
    model_config = ConfigDict(validate_default=True)
    count: int = "none"  # type: ignore[assignment]


class Encoded(BaseModel):
    model_config = ConfigDict(val_json_bytes="base64")
    raw: bytes
    three: Annotated[bytes, Field(min_length=3, max_length=6)]


class Hexadecimal(BaseModel):
    model_config = ConfigDict(val_json_bytes="hex")
    raw: Annotated[bytes, Field(max_length=3)]
    secret: pydantic.SecretBytes = pydantic.SecretBytes(b"")


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True, str_min_length=2)
    name: str


class PathAlias(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int = Field(default=1, validation_alias=AliasPath("a", "b"))
    name: str


@pytest.mark.parametrize(
    "model", [Strict, Omitting, WrongDefault, Encoded, Hexadecimal, Stripped, PathAlias]
)
def test_settings_of_models(model: type[BaseModel]) -> None:
    state = held(model, compact=True)
    assert state is not None
    for text in texts(state, 40):
        model.model_validate_json(text)


def test_bytes_in_hexadecimal_digits() -> None:
    state = held(Hexadecimal, compact=True)
    assert state is not None
    assert accepts(state, '{"raw":"00fF","secret":"0a"}')
    for raw in ("00f", "0g", "00000000"):
        assert not accepts(state, f'{{"raw":"{raw}","secret":""}}'), raw


@pytest.mark.parametrize("mode", ["before", "wrap"])
def test_strict_types_behind_a_validator_are_refused(mode: Any) -> None:
    """The validator reads Python objects, and strict types do not accept strings from those."""

    check: Any = (lambda value: value) if mode == "before" else lambda value, inner: inner(value)
    checks = {"check": field_validator("day", mode=mode)(check)}
    lax = create_model("Lax", day=(date, ...), __validators__=checks)
    strict = create_model("Strict", __base__=lax, day=(Annotated[date, Field(strict=True)], ...))
    assert held(lax) is not None
    assert held(strict) is None


def test_validators_of_users_are_not_called() -> None:
    """They check answers; a schema does not change with them."""
    seen: list[int] = []
    checks = {"check": field_validator("count")(seen.append)}
    assert held(create_model("M", count=(int, ...), __validators__=checks)) is not None
    assert seen == []


def test_addresses_are_those_that_email_validator_accepts() -> None:
    class Address(BaseModel):
        value: Annotated[str, Field(json_schema_extra=dict(NARROWED["EmailStr._validate"]))]

    state = held(Address, compact=True)
    assert state is not None
    assert accepts(state, '{"value":"a.b+c@mail-1.example.com"}')
    for address in ("a@b.test", "a@b.LOCAL", "a@x.localhost", "a@b--c.com", "a@b", "a b@c.de"):
        assert not accepts(state, f'{{"value":"{address}"}}'), address


def test_values_of_common_model_types() -> None:
    for annotation, value in (
        (Path, '"/etc/hosts"'),
        (Decimal, "12.5"),
        (set[str], '["a","b"]'),
        (dict[int, str], '{"1":"a"}'),
        (datetime, '"2024-02-29T12:30:00Z"'),
        (pydantic.HttpUrl, '"https://example.com/a?b=c#d"'),
        (Tree, '{"name":"a","kids":[{"name":"a","kids":[]}]}'),
        (Pet, '{"kind":"cat","lives":9}'),
        (Box[bool], '{"content":true}'),
    ):
        state = held(create_model("M", value=(annotation, ...)), compact=True)
        assert state is not None
        assert accepts(state, f'{{"value":{value}}}'), annotation


@pytest.mark.parametrize(
    ("annotation", "keyword"),
    [
        (pydantic.Json[list[int]], "contentSchema"),
        (pydantic.FilePath, "type"),
        (pydantic.DirectoryPath, "type"),
        (pydantic.NewPath, "type"),
        (pydantic.ImportString, "type"),
        (type[int], "type"),
        (Callable, "type"),
        (Annotated[pydantic.ByteSize, Field(gt=5)], "type"),
        (Annotated[time, Field(gt=time(1, tzinfo=UTC))], "type"),
        (Annotated[float, Field(multiple_of=0.7)], "multipleOf"),
        (Annotated[set[int], Field(min_length=2)], "uniqueItems"),
        (Annotated[dict[str, int], Field(min_length=2)], "minProperties"),
        (dict[Annotated[int, Field(ge=3)], str], "not"),
        *((kind, "type") for kind in (Article, Untypable, Literal[Untypable.RAW], Literal[b"x"])),
        *((kind, "type") for kind in (re.Pattern[bytes], set[list[int]], set[Box[int]])),
        *((kind, "type") for kind in (dict[tuple[int], int], dict[None, int])),
        (Annotated[int, Predicate(lambda value: value > 3)], "type"),
        (Annotated[int, Not(lambda value: value > 3)], "type"),
        (Annotated[Fraction, Field(gt=3)], "type"),
        (Annotated[timedelta, MultipleOf(timedelta(seconds=7))], "type"),
        (Annotated[int, pydantic.PlainValidator(int)], "type"),
        (Annotated[int, Field(validation_alias=AliasPath("a", 0))], "type"),
    ],
)
def test_types_without_a_grammar_are_refused(annotation: Any, keyword: str) -> None:
    model = create_model("M", value=(annotation, ...))
    with pytest.raises(Exception, match=f"`{keyword}`"):
        byte_grammars().start(pydantic_grammar(model))


def pydantic_grammar(model: type[BaseModel]) -> Any:
    from stars_engine import JsonGrammar

    return JsonGrammar(json_schema=model)


def test_models_with_a_custom_schema_keep_it() -> None:
    class Custom(BaseModel):
        @classmethod
        def model_json_schema(cls) -> dict[str, Any]:  # type: ignore[override]
            return {"const": 3}

    state = held(Custom)
    assert state is not None
    assert texts(state, 1) == ["3"]
