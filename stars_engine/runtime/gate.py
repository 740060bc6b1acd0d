"""Back-pressure: how many rollouts may wait inside, and who stands in line outside."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock

from stars_engine.errors import QueueFullError
from stars_engine.runtime.calls import Call, resolve


class Gate:
    """Lets calls in, first come first served, while their rollouts find room in the queue.

    Args:
        capacity: Rollouts that may wait inside. A larger call gets in when nothing else waits.
        let_in: Called with each call that gets in, on the thread that made room for it.
    """

    def __init__(self, capacity: int, let_in: Callable[[Call], None]) -> None:
        self._capacity, self._let_in = capacity, let_in
        self._lock = Lock()
        self._line: deque[Call] = deque()
        self.num_inside = 0

    @property
    def num_in_line(self) -> int:
        """Rollouts of the calls that stand outside."""
        return sum(call.num_rollouts for call in list(self._line))

    def enter(self, call: Call, *, wait: bool) -> None:
        """Let a call in, or have it stand in line.

        Raises:
            QueueFullError: There is no room, and it does not wait.
        """
        with self._lock:
            if self._line or not self._has_room_for(call):
                if not wait:
                    raise QueueFullError(
                        f"{self.num_inside} requests are waiting and max_waiting is "
                        f"{self._capacity}. Cure: try again later, raise "
                        "EngineParams(max_waiting=...), or wait with on_full='wait'"
                    )
                self._line.append(call)
                return
            self.num_inside += call.num_rollouts
        self._open_for(call)

    def leave(self, num_rollouts: int) -> None:
        """Rollouts wait no longer; let in who now finds room."""
        entering = []
        with self._lock:
            self.num_inside -= num_rollouts
            while self._line and self._has_room_for(self._line[0]):
                call = self._line.popleft()
                self.num_inside += call.num_rollouts
                entering.append(call)
        for call in entering:
            self._open_for(call)

    def withdraw(self, call: Call) -> bool:
        """Take a call out of the line; False if it is not there."""
        with self._lock:
            if call not in self._line:
                return False
            self._line.remove(call)
        self.leave(0)  # who stood behind it may be smaller
        return True

    def send_home(self) -> list[Call]:
        """Empty the line."""
        with self._lock:
            calls, self._line = list(self._line), deque()
        return calls

    def _open_for(self, call: Call) -> None:
        resolve(call.entered, None)
        self._let_in(call)

    def _has_room_for(self, call: Call) -> bool:
        return self.num_inside == 0 or self.num_inside + call.num_rollouts <= self._capacity
