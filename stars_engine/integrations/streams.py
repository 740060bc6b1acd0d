"""Streams of adapters: the last event of an answer comes only if no error follows it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator

from stars_engine.config import StarsConfig
from stars_engine.errors import ConfigError, Problem
from stars_engine.types import SegmentEvent


def settled(events: Iterable[SegmentEvent]) -> Iterator[SegmentEvent]:
    """Yield the events of one answer; withhold the last one if an error follows it."""
    end = None
    for event in events:
        if event.result is None:
            yield event
        else:
            end = event
    if end is not None:
        yield end


async def asettled(events: AsyncIterable[SegmentEvent]) -> AsyncGenerator[SegmentEvent, None]:
    """Do the same for async iterables."""
    end = None
    async for event in events:
        if event.result is None:
            yield event
        else:
            end = event
    if end is not None:
        yield end


def refuse_several_answers(settings: StarsConfig, *, hint: str = "n=1, or no stream") -> None:
    """Refuse `n` above 1, because framework streams, and some responses, carry one answer.

    Raises:
        ConfigError: `n` is above 1.
    """
    if settings.sampling != "model" and settings.sampling.n > 1:
        message = (
            f"{settings.sampling.n} is not allowed; only one answer can be returned. Hint: {hint}"
        )
        raise ConfigError("stream", [Problem("n", message)])
