"""Back-pressure: a bounded queue of rollouts, and the request groups that wait to enter it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock

from stars_engine.errors import QueueFullError
from stars_engine.runtime.request_group import RequestGroup, engine_closed_error
from stars_engine.threads.future_outcomes import set_result

EXTRA = 8  # one place more for so many, for groups without an admitted rollout

_Notices = tuple[list[RequestGroup], list[RequestGroup]]  # with a first, a last admitted rollout


class AdmissionQueue:
    """Admits rollouts to a bounded queue, one from each blocked group in turn.

    A large group is thus admitted piece by piece, and a later group with a single prompt does not
    wait for all of it. An eighth more than the capacity is for groups without an admitted rollout:
    the prompts of a large group are read before its first rollout starts, and others do not wait
    for that.

    Args:
        capacity: Maximum number of admitted rollouts that wait to start.
        on_admit: Called with a group when its first rollout is admitted, on the thread that freed
            the capacity.
    """

    def __init__(self, capacity: int, on_admit: Callable[[RequestGroup], None]) -> None:
        self._capacity, self._on_admit = capacity, on_admit
        self._lock = Lock()
        self._blocked: deque[RequestGroup] = deque()  # the next in turn first
        self._not_admitted: dict[RequestGroup, int] = {}  # number of rollouts, by blocked group
        self._admitted: dict[RequestGroup, int] = {}  # number of rollouts that wait to start
        self._closed = False
        self.num_admitted = 0

    @property
    def num_in_line(self) -> int:
        """Number of rollouts that are not admitted yet."""
        with self._lock:
            return sum(self._not_admitted.values())

    @property
    def unadmitted_groups(self) -> list[RequestGroup]:
        """Groups without an admitted rollout."""
        with self._lock:
            return [group for group in self._blocked if group not in self._admitted]

    # --- from any thread ---

    def submit(self, group: RequestGroup, *, wait: bool) -> None:
        """Admit a group, or as much of it as fits; the rest is blocked until capacity is free.

        Raises:
            QueueFullError: The queue is full and `wait` is False.
            EngineClosedError: The queue is closed.
        """
        with self._lock:
            if self._closed:
                raise engine_closed_error()
            if self._is_full and group.num_rollouts and not wait:
                raise QueueFullError(
                    f"{self.num_admitted} requests are waiting and max_waiting is "
                    f"{self._capacity}. Hint: retry later, raise EngineParams(max_waiting=...), or "
                    "wait with on_full='wait'"
                )
            if group.num_rollouts:
                self._not_admitted[group] = group.num_rollouts
                self._blocked.append(group)
                started, admitted = self._admit()
            else:
                started = admitted = [group]
        self._notify(started, admitted)

    def remove(self, group: RequestGroup) -> None:
        """Remove all rollouts of the group."""
        with self._lock:
            counts = self._admitted.get(group, 0), self._not_admitted.get(group, 0)
            notices = self._remove(group, *counts)
        self._notify(*notices)

    # --- from the engine's thread ---

    def may_start(self, group: RequestGroup) -> bool:
        """Return whether a rollout of the group is admitted and waits to start."""
        with self._lock:
            return self._admitted.get(group, 0) > 0

    def start_one(self, group: RequestGroup) -> None:
        """Remove one admitted rollout of the group from the queue, because it starts.

        Another thread may have removed the group since `may_start`.
        """
        with self._lock:
            notices = self._remove(group, min(1, self._admitted.get(group, 0)), 0)
        self._notify(*notices)

    def drop(self, group: RequestGroup, num_rollouts: int) -> None:
        """Remove rollouts of the group that have ended; those not admitted yet count first."""
        with self._lock:
            num_blocked = min(num_rollouts, self._not_admitted.get(group, 0))
            num_admitted = min(num_rollouts - num_blocked, self._admitted.get(group, 0))
            notices = self._remove(group, num_admitted, num_blocked)
        self._notify(*notices)

    def close(self) -> list[RequestGroup]:
        """Refuse further groups; return those that were blocked."""
        with self._lock:
            self._closed = True
            groups = list(self._blocked)
            self._blocked.clear()
            self._not_admitted.clear()
            self._admitted.clear()
            self.num_admitted = 0
        return groups

    # --- inside ---

    @property
    def _is_full(self) -> bool:
        """Whether nothing can be admitted, not even of a group without an admitted rollout."""
        return self.num_admitted >= self._capacity + self._capacity // EXTRA

    def _remove(self, group: RequestGroup, num_admitted: int, num_blocked: int) -> _Notices:
        """Remove rollouts of a group; return whom to notify once the lock is released."""
        admitted = []
        if num_admitted:
            self.num_admitted -= num_admitted
            self._admitted[group] -= num_admitted
        if group in self._not_admitted:
            self._not_admitted[group] -= num_blocked
            if self._not_admitted[group] == 0:
                del self._not_admitted[group]
                self._blocked.remove(group)
                admitted.append(group)
        if group not in self._not_admitted and self._admitted.get(group) == 0:
            del self._admitted[group]
        started, now_admitted = self._admit()
        return started, [*admitted, *now_admitted]

    def _admit(self) -> _Notices:
        """Admit rollouts; return groups with a first, and with a last, admitted rollout."""
        started, admitted = [], []
        while (group := self._next_blocked()) is not None:
            left = self._not_admitted[group]
            # The only blocked group takes all that it may have.
            size = 1 if self._blocked else max(1, min(left, self._capacity - self.num_admitted))
            if group not in self._admitted:
                started.append(group)
            self._admitted[group] = self._admitted.get(group, 0) + size
            self.num_admitted += size
            if size < left:
                self._not_admitted[group] = left - size
                self._blocked.append(group)
            else:
                del self._not_admitted[group]
                admitted.append(group)
        return started, admitted

    def _next_blocked(self) -> RequestGroup | None:
        """Remove and return the next blocked group that may have a further rollout admitted."""
        for _ in range(0 if self._is_full else len(self._blocked)):
            group = self._blocked.popleft()
            if group not in self._admitted or self.num_admitted < self._capacity:
                return group
            self._blocked.append(group)
        return None

    def _notify(self, started: list[RequestGroup], admitted: list[RequestGroup]) -> None:
        for group in started:
            self._on_admit(group)
        for group in admitted:
            set_result(group.admitted, None)
