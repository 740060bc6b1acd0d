"""Whether an event loop keeps running."""

from __future__ import annotations

import asyncio
from typing import Self


class LoopTicker:
    """Counts iterations of the event loop."""

    def __init__(self) -> None:
        self.count = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0.001)
