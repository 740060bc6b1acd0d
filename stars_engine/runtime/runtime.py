"""One loaded language model and the thread that owns it, behind any number of handles."""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Lock, Thread, current_thread
from typing import Any

from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.errors import EngineClosedError, EngineForkedError, StarsError
from stars_engine.runtime.calls import Call, RewardSource
from stars_engine.runtime.scheduler import Scheduler
from stars_engine.runtime.stats import EngineStats

logger = logging.getLogger(__name__)

EXIT_S = 4.0  # how long the end of the process waits for a round to end

_open: weakref.WeakSet[Runtime] = weakref.WeakSet()


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
        self._scheduler = Scheduler(load, params, sweep=self.sweep)
        self._keep_alive_s = keep_alive_s
        self._on_close = on_close
        self._handles: Counter[str] = Counter()  # by the reward they use
        self._unused_until_s: dict[str, float] = {}  # rewards without a handle
        self._thread: Thread | None = None
        self._lock = Lock()
        self._closed = False
        self._pid = os.getpid()
        _open.add(self)

    # --- handles ---

    def acquire(self, reward_key: str) -> bool:
        """One more handle uses it; False if it is already closed."""
        with self._lock:
            if not self._closed:
                self._handles[reward_key] += 1
            return not self._closed

    def release(self, reward_key: str, *, at_once: bool) -> None:
        """A handle was closed, or forgotten.

        What was only forgotten is kept for `keep_alive_s`: objects that are made anew for every
        request would otherwise load the models again each time.

        Args:
            reward_key: The reward it used.
            at_once: True if it was closed: with the last handle everything goes at once.
        """
        with self._lock:
            self._handles[reward_key] -= 1
            if self._handles[reward_key] == 0:
                kept_s = 0.0 if at_once else self._keep_alive_s
                self._unused_until_s[reward_key] = time.monotonic() + kept_s
            if at_once and not any(self._handles.values()):
                self._handles.clear()
        self.sweep(wait=at_once)

    def release_later(self, reward_key: str) -> None:
        """A handle was forgotten: finalizers run anywhere, so that they must take no lock."""
        self._scheduler.post(partial(self.release, reward_key, at_once=False))

    def sweep(self, *, wait: bool = False) -> float | None:
        """Let go of what nobody uses any more.

        Returns:
            Seconds until more may go; None if that depends on others.
        """
        now_s = time.monotonic()
        with self._lock:
            unused = {k: s for k, s in self._unused_until_s.items() if not self._handles[k]}
            gone = [key for key, until_s in unused.items() if until_s <= now_s]
            for key in gone:
                del self._handles[key]
            self._unused_until_s = {k: s for k, s in unused.items() if k not in gone}
            last = not self._handles
            self._closed = self._closed or last
        if last:
            self.close(wait=wait)
            return None
        for key in gone:
            self._scheduler.post(partial(self._scheduler.forget_reward, key))
        return min((s - now_s for s in self._unused_until_s.values()), default=None)

    def close(
        self, *, wait: bool = True, timeout_s: float | None = None, at_once: bool = False
    ) -> None:
        """End the thread and let go of the models; what is in progress fails."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._on_close(self)
        if os.getpid() != self._pid:
            return  # the thread is the parent's
        self._scheduler.stop(at_once=at_once)
        if wait and thread is not None and thread is not current_thread():
            thread.join(timeout_s)

    # --- work ---

    def submit(self, call: Call, *, wait: bool) -> None:
        """Take a call on.

        Raises:
            EngineClosedError: It is closed.
            EngineForkedError: It belongs to another process.
            QueueFullError: There is no room and `wait` is false.
        """
        with self._lock:
            self._begin()
            self._scheduler.gate.enter(call, wait=wait)
        call.future.add_done_callback(partial(self._end_if_cancelled, call))

    def load(self, source: RewardSource) -> Future[Any]:
        """Have both models loaded; the future gives them."""
        done: Future[Any] = Future()
        with self._lock:
            self._begin()
            asked_s = time.monotonic()
            self._scheduler.post(partial(self._scheduler.load, source, asked_s, done))
        return done

    def end_call(self, call: Call) -> None:
        """Have a call end where it stands; its answers say `cancelled`."""
        self._scheduler.post(partial(self._scheduler.end_call, call))

    def stats(self) -> EngineStats:
        """Return what is going on."""
        return self._scheduler.stats()

    def check_not_on_thread(self) -> None:
        """Refuse to wait for the thread on the thread itself.

        Raises:
            StarsError: This is the thread.
        """
        if current_thread() is self._thread:
            raise StarsError(
                "the engine was called from its own thread, by a reward model or a future's "
                "callback, and would wait for itself. Cure: call it from another thread"
            )

    def _work(self) -> None:
        """What the thread does. Whatever ends it, everybody is told and nobody let in any more."""
        cause = None
        try:
            self._scheduler.run()
        except BaseException as error:
            logger.exception("the engine's thread fails; all requests end with an error")
            cause = error
        with self._lock:
            self._closed = True
        self._on_close(self)
        self._scheduler.send_all_home(cause)

    def _end_if_cancelled(self, call: Call, future: Future[Any]) -> None:
        if future.cancelled():
            self.end_call(call)

    def _begin(self) -> None:
        if os.getpid() != self._pid:
            raise EngineForkedError(
                f"this engine belongs to process {self._pid}; its thread does not exist in the "
                f"forked process {os.getpid()}. Cure: make the engine in the child process, or "
                "start processes with the 'spawn' method"
            )
        if self._closed:
            raise EngineClosedError("this engine is closed. Cure: make a new StarsEngine(config)")
        if self._thread is None:
            # A daemon, so that an idle engine does not keep the process alive; `_at_exit` ends it
            # before the interpreter does, which would abort a thread that is inside torch.
            self._thread = Thread(target=self._work, name="stars-engine", daemon=True)
            self._thread.start()


@atexit.register
def _at_exit() -> None:
    deadline = time.monotonic() + EXIT_S
    runtimes = list(_open)
    for runtime in runtimes:
        runtime.close(wait=False, at_once=True)
    for runtime in runtimes:
        runtime.close(timeout_s=max(0.0, deadline - time.monotonic()))
