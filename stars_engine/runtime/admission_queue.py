"""Back-pressure: how many rollouts may wait inside, and who stands in line outside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock

from stars_engine.errors import QueueFullError
from stars_engine.runtime.futures import resolve
from stars_engine.runtime.request_group import Call, closed_at_work


class Gate:
    """Lets rollouts into the queue as they find room: one of each call in line, in turn.

    So a large call comes in piece by piece, and one with a single prompt that comes later is next.
    The queue is full when nothing of it is free.

    Args:
        capacity: Rollouts that may wait inside.
        let_in: Called with each call of which something gets in for the first time, on the thread
            that made room for it.
    """

    def __init__(self, capacity: int, let_in: Callable[[Call], None]) -> None:
        self._capacity, self._let_in = capacity, let_in
        self._lock = Lock()
        self._line: deque[Call] = deque()  # the next in turn first
        self._outside: dict[Call, int] = {}  # rollouts of those in line
        self._inside: dict[Call, int] = {}  # rollouts of those of which something got in
        self._shut = False
        self.num_inside = 0

    @property
    def num_in_line(self) -> int:
        """Rollouts that stand outside."""
        with self._lock:
            return sum(self._outside.values())

    @property
    def line(self) -> list[Call]:
        """Calls of which nothing got in yet."""
        with self._lock:
            return [call for call in self._line if call not in self._inside]

    # --- from any thread ---

    def enter(self, call: Call, *, wait: bool) -> None:
        """Let a call in, or as much of it as finds room; the rest stands in line.

        Raises:
            QueueFullError: There is no room, and it does not wait.
            EngineClosedError: The gate was shut.
        """
        with self._lock:
            if self._shut:
                raise closed_at_work()
            if self._is_full and call.num_rollouts and not wait:
                raise QueueFullError(
                    f"{self.num_inside} requests are waiting and max_waiting is "
                    f"{self._capacity}. Cure: try again later, raise "
                    "EngineParams(max_waiting=...), or wait with on_full='wait'"
                )
            if call.num_rollouts:
                self._outside[call] = call.num_rollouts
                self._line.append(call)
                begun, entered = self._fill()
            else:
                begun = entered = [call]
        self._welcome(begun, entered)

    # --- from the engine's thread ---

    def may_go(self, call: Call) -> bool:
        """Whether one of a call's rollouts is inside."""
        return self._inside.get(call, 0) > 0

    def go(self, call: Call) -> None:
        """One of its rollouts inside waits no longer."""
        self._leave(call, num_inside=1)

    def drop(self, call: Call, num_rollouts: int) -> None:
        """So many of its rollouts have ended; those outside count first."""
        outside = min(num_rollouts, self._outside.get(call, 0))
        self._leave(call, num_inside=num_rollouts - outside, num_outside=outside)

    def forget(self, call: Call) -> None:
        """None of its rollouts waits any more, inside or outside."""
        self._leave(call, self._inside.get(call, 0), self._outside.get(call, 0))

    def shut(self) -> list[Call]:
        """Let nobody in any more; return who stood in line."""
        with self._lock:
            self._shut = True
            calls = list(self._line)
            self._line.clear()
            self._outside.clear()
            self._inside.clear()
            self.num_inside = 0
        return calls

    # --- inside ---

    @property
    def _is_full(self) -> bool:
        return self.num_inside >= self._capacity

    def _leave(self, call: Call, num_inside: int = 0, num_outside: int = 0) -> None:
        with self._lock:
            entered = []
            if num_inside:
                self.num_inside -= num_inside
                self._inside[call] -= num_inside
            if call in self._outside:
                self._outside[call] -= num_outside
                if self._outside[call] == 0:
                    del self._outside[call]
                    self._line.remove(call)
                    entered.append(call)
            if call not in self._outside and self._inside.get(call) == 0:
                del self._inside[call]
            begun, now_entered = self._fill()
        self._welcome(begun, [*entered, *now_entered])

    def _fill(self) -> tuple[list[Call], list[Call]]:
        """Let rollouts in; return calls of which these are the first, and those wholly inside."""
        begun, entered = [], []
        while self._line and not self._is_full:
            call = self._line.popleft()
            left = self._outside[call]
            # Alone in line, it has every turn.
            size = min(left, 1 if self._line else self._capacity - self.num_inside)
            if call not in self._inside:
                begun.append(call)
            self._inside[call] = self._inside.get(call, 0) + size
            self.num_inside += size
            if size < left:
                self._outside[call] = left - size
                self._line.append(call)
            else:
                del self._outside[call]
                entered.append(call)
        return begun, entered

    def _welcome(self, begun: list[Call], entered: list[Call]) -> None:
        for call in begun:
            self._let_in(call)
        for call in entered:
            resolve(call.entered, None)
