"""Back-pressure: how many rollouts may wait inside, and who stands in line outside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock

from stars_engine.errors import QueueFullError
from stars_engine.runtime.futures import resolve
from stars_engine.runtime.request_group import RequestGroup, closed_at_work


class AdmissionQueue:
    """Lets rollouts into the queue as they find room: one of each call in line, in turn.

    So a large call comes in piece by piece, and one with a single prompt that comes later is next.
    The queue is full when nothing of it is free.

    Args:
        capacity: Rollouts that may wait inside.
        let_in: Called with each call of which something gets in for the first time, on the thread
            that made room for it.
    """

    def __init__(self, capacity: int, let_in: Callable[[RequestGroup], None]) -> None:
        self._capacity, self._let_in = capacity, let_in
        self._lock = Lock()
        self._line: deque[RequestGroup] = deque()  # the next in turn first
        self._outside: dict[RequestGroup, int] = {}  # rollouts of those in line
        self._inside: dict[RequestGroup, int] = {}  # rollouts of those of which something got in
        self._shut = False
        self.num_inside = 0

    @property
    def num_in_line(self) -> int:
        """Rollouts that stand outside."""
        with self._lock:
            return sum(self._outside.values())

    @property
    def line(self) -> list[RequestGroup]:
        """Calls of which nothing got in yet."""
        with self._lock:
            return [group for group in self._line if group not in self._inside]

    # --- from any thread ---

    def enter(self, group: RequestGroup, *, wait: bool) -> None:
        """Let a call in, or as much of it as finds room; the rest stands in line.

        Raises:
            QueueFullError: There is no room, and it does not wait.
            EngineClosedError: The gate was shut.
        """
        with self._lock:
            if self._shut:
                raise closed_at_work()
            if self._is_full and group.num_rollouts and not wait:
                raise QueueFullError(
                    f"{self.num_inside} requests are waiting and max_waiting is "
                    f"{self._capacity}. Cure: try again later, raise "
                    "EngineParams(max_waiting=...), or wait with on_full='wait'"
                )
            if group.num_rollouts:
                self._outside[group] = group.num_rollouts
                self._line.append(group)
                begun, entered = self._fill()
            else:
                begun = entered = [group]
        self._welcome(begun, entered)

    # --- from the engine's thread ---

    def may_go(self, group: RequestGroup) -> bool:
        """Whether one of a call's rollouts is inside."""
        return self._inside.get(group, 0) > 0

    def go(self, group: RequestGroup) -> None:
        """One of its rollouts inside waits no longer."""
        self._leave(group, num_inside=1)

    def drop(self, group: RequestGroup, num_rollouts: int) -> None:
        """So many of its rollouts have ended; those outside count first."""
        outside = min(num_rollouts, self._outside.get(group, 0))
        self._leave(group, num_inside=num_rollouts - outside, num_outside=outside)

    def forget(self, group: RequestGroup) -> None:
        """None of its rollouts waits any more, inside or outside."""
        self._leave(group, self._inside.get(group, 0), self._outside.get(group, 0))

    def shut(self) -> list[RequestGroup]:
        """Let nobody in any more; return who stood in line."""
        with self._lock:
            self._shut = True
            groups = list(self._line)
            self._line.clear()
            self._outside.clear()
            self._inside.clear()
            self.num_inside = 0
        return groups

    # --- inside ---

    @property
    def _is_full(self) -> bool:
        return self.num_inside >= self._capacity

    def _leave(self, group: RequestGroup, num_inside: int = 0, num_outside: int = 0) -> None:
        with self._lock:
            entered = []
            if num_inside:
                self.num_inside -= num_inside
                self._inside[group] -= num_inside
            if group in self._outside:
                self._outside[group] -= num_outside
                if self._outside[group] == 0:
                    del self._outside[group]
                    self._line.remove(group)
                    entered.append(group)
            if group not in self._outside and self._inside.get(group) == 0:
                del self._inside[group]
            begun, now_entered = self._fill()
        self._welcome(begun, [*entered, *now_entered])

    def _fill(self) -> tuple[list[RequestGroup], list[RequestGroup]]:
        """Let rollouts in; return calls of which these are the first, and those wholly inside."""
        begun, entered = [], []
        while self._line and not self._is_full:
            group = self._line.popleft()
            left = self._outside[group]
            # Alone in line, it has every turn.
            size = min(left, 1 if self._line else self._capacity - self.num_inside)
            if group not in self._inside:
                begun.append(group)
            self._inside[group] = self._inside.get(group, 0) + size
            self.num_inside += size
            if size < left:
                self._outside[group] = left - size
                self._line.append(group)
            else:
                del self._outside[group]
                entered.append(group)
        return begun, entered

    def _welcome(self, begun: list[RequestGroup], entered: list[RequestGroup]) -> None:
        for group in begun:
            self._let_in(group)
        for group in entered:
            resolve(group.entered, None)
