"""One loaded language model and the thread that owns it, behind any number of handles."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Lock, Thread, current_thread
from typing import Any

from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.errors import EngineClosedError, Interrupted, StarsError
from stars_engine.rewards.base import RewardModel
from stars_engine.runtime import exits
from stars_engine.runtime.engine_thread import EngineLoop
from stars_engine.runtime.forks import check_process
from stars_engine.runtime.futures import CallFuture
from stars_engine.runtime.request_group import RequestGroup, RewardSource
from stars_engine.runtime.stats import EngineStats

logger = logging.getLogger(__name__)


class Runtime:
    """The thread, and who uses it. Every method may be called from any thread.

    The thread begins with the first call and ends when nobody uses it any more.

    Args:
        load: Loads the language model, on the thread.
        params: Bounds.
        keep_alive_s: How long it outlives the last handle, if that was forgotten and not closed.
        on_close: Called when it closes.
    """

    def __init__(
        self,
        load: Callable[[], PromptedModel],
        params: EngineParams,
        *,
        keep_alive_s: float = 0.0,
        on_close: Callable[[Runtime], None] = lambda _: None,
    ) -> None:
        self.params = params
        self._loop = EngineLoop(load, params, sweep=self.sweep)
        self._keep_alive_s = keep_alive_s
        self._on_close = on_close
        self._handles: Counter[str] = Counter()  # by the reward they use
        self._calls: Counter[str] = Counter()  # in progress, by the reward they use
        self._forgotten: deque[str] = deque()  # rewards of handles that were garbage-collected
        self._unused_until_s: dict[str, float] = {}  # rewards without a handle
        self._thread: Thread | None = None
        self._lock = Lock()
        self._closed = False
        self._pid = os.getpid()
        exits.register(self)

    # --- handles ---

    @property
    def is_held(self) -> bool:
        """Whether it has a handle, or work."""
        with self._lock:
            self._count_forgotten()
            return any(self._handles.values()) or any(self._calls.values())

    def acquire(self, reward_key: str) -> bool:
        """One more handle uses it; False if it is already closed."""
        with self._lock:
            if not self._closed:
                self._handles[reward_key] += 1
            return not self._closed

    def release(self, reward_key: str) -> None:
        """A handle was closed: with the last one everything goes at once."""
        if os.getpid() != self._pid:
            return  # all of it is the parent's
        with self._lock:
            self._count_forgotten()
            self._count_out(reward_key, kept_s=0.0)
            if not any(self._handles.values()):
                self._handles.clear()
        self.sweep(wait=True)

    def release_later(self, reward_key: str) -> None:
        """A handle was forgotten: what it used is kept for `keep_alive_s`.

        Objects that are made anew for every request would otherwise load the models again each
        time. Finalizers run anywhere, so that they must take no lock.
        """
        if os.getpid() == self._pid:
            self._forgotten.append(reward_key)
            self._loop.post(lambda: None)  # to have it counted

    def sweep(self, *, wait: bool = False) -> float | None:
        """Let go of what nobody uses any more.

        Returns:
            Seconds until more may go; None if that depends on others.
        """
        now_s = time.monotonic()
        with self._lock:
            self._count_forgotten()
            unused = {k: s for k, s in self._unused_until_s.items() if not self._handles[k]}
            # Calls go on when their handle is closed, and ask their reward again.
            idle = {key: until_s for key, until_s in unused.items() if not self._calls[key]}
            gone = [key for key, until_s in idle.items() if until_s <= now_s]
            for key in gone:
                del self._handles[key], unused[key]
            self._unused_until_s = unused
            last = not self._handles
            self._closed = self._closed or last
        if last:
            self.close(wait=wait)
            return None
        for key in gone:
            self._loop.post(partial(self._loop.forget_reward, key))
        return min((s - now_s for key, s in idle.items() if key not in gone), default=None)

    def close(
        self, *, wait: bool = True, timeout_s: float | None = None, at_once: bool = False
    ) -> None:
        """End the thread and let go of the models; what is in progress fails."""
        if os.getpid() != self._pid:
            return  # the thread is the parent's
        with self._lock:
            self._closed = True
            thread = self._thread
        self._on_close(self)
        self._loop.stop(at_once=at_once)
        if thread is None:
            self._loop.fail_all(None)
        elif wait and thread is not current_thread():
            thread.join(timeout_s)

    @property
    def threads(self) -> list[Thread]:
        """Its thread, and those of its rewards, that are alive."""
        own = [] if self._thread is None else [self._thread]
        return [
            thread for thread in (*own, *self._loop.reward_executor.threads) if thread.is_alive()
        ]

    # --- work ---

    def submit(self, group: RequestGroup, *, wait: bool) -> None:
        """Take a call on.

        Raises:
            EngineClosedError: It is closed.
            EngineForkedError: It belongs to another process.
            QueueFullError: There is no room and `wait` is false.
        """
        self.check_process()
        with self._lock:
            self._begin()
            self._loop.admission.enter(group, wait=wait)
            self._calls[group.reward.key] += 1
        group.future.add_done_callback(partial(self._note_end, group))

    def load(self, source: RewardSource) -> Future[Any]:
        """Have both models loaded; the future gives them."""
        done: CallFuture[Any] = CallFuture()
        self.check_process()
        with self._lock:
            self._begin()
            asked_s = time.monotonic()
            self._loop.post(partial(self._loop.load, source, asked_s, done))
        return done

    def loaded(self, source: RewardSource) -> tuple[PromptedModel, RewardModel] | None:
        """Return both models if they are loaded, without waiting for anything."""
        self.check_process()
        return self._loop.loaded(source)

    def end_group(self, group: RequestGroup) -> None:
        """Have a call end where it stands; its answers say `cancelled`."""
        self.check_process()
        group.ended = True  # also if it has not begun
        self._loop.post(partial(self._loop.end_group, group))

    def stats(self) -> EngineStats:
        """Return what is going on."""
        self.check_process()
        return self._loop.stats()

    def check_process(self) -> None:
        """Refuse to be used in a forked process.

        Raises:
            EngineForkedError: This is one.
        """
        check_process(self._pid)

    def check_may_wait(self) -> None:
        """Refuse to wait for the thread where it waits for the caller.

        Raises:
            StarsError: This is the thread itself, or a reward's.
        """
        if current_thread() is self._thread:
            raise StarsError(
                "the engine was called from its own thread, by a reward model or a future's "
                "callback, and would wait for itself. Cure: call it from another thread"
            )
        if self._loop.reward_executor.is_asking:
            raise StarsError(
                "the engine was called by a reward that it was waiting for, and could wait for "
                "itself. Cure: give the reward an engine of its own, StarsEngine(config)"
            )

    # --- inside ---

    def _note_end(self, group: RequestGroup, future: Future[Any]) -> None:
        group.owner = None  # now the handle may go, without waiting for a garbage collection
        if future.cancelled():
            self.end_group(group)
        self._loop.post(partial(self._count_call_out, group.reward.key))

    def _count_call_out(self, reward_key: str) -> None:
        with self._lock:
            self._calls[reward_key] -= 1

    def _count_forgotten(self) -> None:
        while self._forgotten:
            self._count_out(self._forgotten.popleft(), kept_s=self._keep_alive_s)

    def _count_out(self, reward_key: str, *, kept_s: float) -> None:
        self._handles[reward_key] -= 1
        if self._handles[reward_key] == 0:
            self._unused_until_s[reward_key] = time.monotonic() + kept_s

    def _begin(self) -> None:
        if self._closed:
            raise EngineClosedError("this engine is closed. Cure: make a new StarsEngine(config)")
        if self._thread is None:
            # A daemon, so that an idle engine does not keep the process alive; `exits` ends it
            # before the interpreter does, which would abort a thread that is inside torch.
            self._thread = Thread(target=self._run, name="stars-engine", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """What the thread does. Whatever ends it, everybody is told and nobody let in any more."""
        cause = None
        try:
            self._loop.run()
        except BaseException as error:
            if not isinstance(error, Interrupted):
                logger.exception("the engine's thread fails; all requests end with an error")
                cause = error
        finally:
            self._end(cause)

    def _end(self, cause: BaseException | None) -> None:
        while True:
            try:
                with self._lock:
                    self._closed = True
                self._on_close(self)
                self._loop.fail_all(cause)
            except Interrupted:  # the process is ending, and cannot wait for this either
                continue
            return
