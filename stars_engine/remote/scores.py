"""How servers are asked for scores of token ids, and how their answers are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from stars_engine.remote.failures import MalformedAnswerError

Scores = list[list[float]]  # one list of numbers for each input


class ScoreEndpoint(Protocol):
    """The classification endpoint of one kind of server.

    Attributes:
        name: Its name in configs and messages.
        path: The path of the endpoint.
    """

    name: str
    path: str

    def body(
        self,
        rows: Sequence[Sequence[int]],
        model: str | None,
        *,
        raw: bool = True,
        salt: str | None = None,
    ) -> dict[str, Any]:
        """Return the body of a request.

        Args:
            rows: Token ids of each input.
            model: The name of the model.
            raw: Whether to ask for raw scores, not for probabilities.
            salt: Inputs with another salt share no cached prefix, where servers support it.
        """

    def parse(self, answer: Any, count: int) -> Scores:
        """Read an answer with `count` results.

        Raises:
            MalformedAnswerError: It does not have the form that the endpoint promises.
        """


class VllmClassify:
    """vLLM's `/classify`."""

    name, path = "classify", "/classify"
    _field: ClassVar[str] = "probs"  # of an item of the answer
    _more: ClassVar[dict[str, str]] = {}  # in the body

    def body(
        self,
        rows: Sequence[Sequence[int]],
        model: str | None,
        *,
        raw: bool = True,
        salt: str | None = None,
    ) -> dict[str, Any]:
        """See `ScoreEndpoint`."""
        body: dict[str, Any] = {"model": model, "input": [list(row) for row in rows]}
        body |= {"use_activation": not raw, **self._more}
        return body if salt is None else {**body, "cache_salt": salt}

    def parse(self, answer: Any, count: int) -> Scores:
        """See `ScoreEndpoint`."""
        return _numbers(_in_order(answer["data"], self._field), count)


class VllmPooling(VllmClassify):
    """vLLM's `/pooling`, with the task of classification."""

    name, path = "pooling", "/pooling"
    _field, _more = "data", {"task": "classify"}


class SGLangClassify:
    """SGLang's `/classify`, which returns raw scores."""

    name, path = "sglang", "/classify"

    def body(
        self,
        rows: Sequence[Sequence[int]],
        model: str | None,
        *,
        raw: bool = True,
        salt: str | None = None,
    ) -> dict[str, Any]:
        """See `ScoreEndpoint`."""
        return {"input_ids": [list(row) for row in rows], "use_activation": not raw}

    def parse(self, answer: Any, count: int) -> Scores:
        """See `ScoreEndpoint`."""
        answer = answer if isinstance(answer, list) else [answer]
        return _numbers([item["embedding"] for item in answer], count)


ENDPOINTS: tuple[ScoreEndpoint, ...] = (VllmClassify(), VllmPooling(), SGLangClassify())


def endpoint_named(name: str) -> ScoreEndpoint:
    """Return the endpoint with a name."""
    return next(each for each in ENDPOINTS if each.name == name)


def _in_order(items: Any, name: str) -> list[Any]:
    """Return the values of indexed items by ascending index."""
    if sorted(item["index"] for item in items) != list(range(len(items))):
        raise MalformedAnswerError("the results are not numbered from 0")
    return [item[name] for item in sorted(items, key=lambda item: item["index"])]


def _numbers(rows: list[Any], count: int) -> Scores:
    if len(rows) != count:
        raise MalformedAnswerError(f"{len(rows)} results for {count} inputs")
    found = []
    for row in rows:
        values = row if isinstance(row, list) else [row]
        if not values or not all(type(value) in (int, float) for value in values):
            raise MalformedAnswerError("a result is not a list of numbers")
        found.append([float(value) if value is not None else math.nan for value in values])
    return found
