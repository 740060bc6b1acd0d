"""Start, share and close one engine thread: what any number of `StarsEngine` objects hold.

Methods are called by any thread. What the thread itself does is in `engine_loop`.
"""

from __future__ import annotations

import logging
import os
import threading
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
from stars_engine.runtime.engine_loop import EngineLoop
from stars_engine.runtime.forks import check_process
from stars_engine.runtime.futures import CALLBACKS, RequestFuture
from stars_engine.runtime.request_group import RequestGroup, RewardSource
from stars_engine.runtime.score_job import ReadInputs
from stars_engine.runtime.stats import EngineStats
from stars_engine.runtime.watchdog import READERS, Watchdog, where_it_is
from stars_engine.threads import process_exit
from stars_engine.types import Score

logger = logging.getLogger(__name__)


class Runtime:
    """The engine's thread and the handles that use it. All methods are thread-safe.

    The thread starts with the first call and ends when its last handle is closed, or some
    time after that handle was garbage-collected.

    Args:
        load: Loads the language model; called on the engine's thread.
        params: Limits of the engine.
        keep_alive_s: Seconds for which the runtime outlives its last handle, if that handle was
            garbage-collected and not closed.
        on_close: Called when the runtime closes.
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
        self._handles: Counter[str] = Counter()  # number of handles, by reward
        self._num_groups: Counter[str] = Counter()  # number of groups in progress, by reward
        self._collected: deque[str] = deque()  # rewards of handles that were garbage-collected
        self._unused_until_s: dict[str, float] = {}  # when to unload rewards without a handle
        self._thread: Thread | None = None
        self._watchdog = Watchdog(lambda: self._thread, self._end_missed)
        self._lock = Lock()
        self._closed = False
        self._pid = os.getpid()
        process_exit.register(self)

    # --- handles ---

    @property
    def closed(self) -> bool:
        """Whether it has ended; it never starts again."""
        return self._closed

    @property
    def in_use(self) -> bool:
        """Whether the runtime has a handle or requests in progress."""
        with self._lock:
            self._release_collected()
            return any(self._handles.values()) or any(self._num_groups.values())

    def acquire(self, reward_key: str) -> bool:
        """Add a handle; return False if the runtime is closed."""
        with self._lock:
            if not self._closed:
                self._handles[reward_key] += 1
            return not self._closed

    def release(self, reward_key: str, timeout_s: float | None = None) -> None:
        """Remove a closed handle. The last one closes the runtime at once; see `close`."""
        if os.getpid() != self._pid:
            return  # the runtime belongs to the parent process
        with self._lock:
            self._release_collected()
            self._release_handle(reward_key, keep_s=0.0)
            if not any(self._handles.values()):
                self._handles.clear()
        self.sweep(wait=True, timeout_s=timeout_s)

    def release_later(self, reward_key: str) -> None:
        """Remove a garbage-collected handle, but keep its models for `keep_alive_s`.

        Otherwise, programs that create a new object for every request would load the models each
        time. Finalizers can run anywhere, so this takes no lock.
        """
        if os.getpid() == self._pid:
            self._collected.append(reward_key)
            self._loop.post(lambda: None)  # wake the thread, which then sweeps

    def sweep(self, *, wait: bool = False, timeout_s: float | None = None) -> float | None:
        """Unload rewards that are not used any more; close the runtime if it has no handle.

        Returns:
            Seconds until the next reward can be unloaded; None if no time is set.
        """
        now_s = time.monotonic()
        with self._lock:
            self._release_collected()
            unused = {k: s for k, s in self._unused_until_s.items() if not self._handles[k]}
            # Groups in progress continue when their handle is closed, and still need their reward.
            idle = {key: until_s for key, until_s in unused.items() if not self._num_groups[key]}
            gone = [key for key, until_s in idle.items() if until_s <= now_s]
            for key in gone:
                del self._handles[key], unused[key]
            self._unused_until_s = unused
            last = not self._handles
            self._closed = self._closed or last
        if last:
            self.close(wait=wait, timeout_s=timeout_s)
            return None
        for key in gone:
            self._loop.post(partial(self._loop.unload_reward, key))
        return min((s - now_s for key, s in idle.items() if key not in gone), default=None)

    def close(
        self, *, wait: bool = True, timeout_s: float | None = None, at_once: bool = False
    ) -> None:
        """End the thread and unload the models; requests in progress fail.

        Args:
            wait: Whether to wait for the thread.
            timeout_s: Maximum wait in seconds, for a thread that hangs; None for no limit. 0 does
                not wait for a thread that is busy, and logs nothing.
            at_once: Whether to end the current step.
        """
        if os.getpid() != self._pid:
            return  # the thread belongs to the parent process
        with self._lock:
            self._closed = True
            thread = self._thread
        self._on_close(self)
        self._loop.stop(at_once=at_once)
        if thread is None:
            self._loop.fail_all(None)
        elif wait and thread is not current_thread():
            thread.join(timeout_s)
            if thread.is_alive():
                if timeout_s:
                    where = where_it_is(thread)
                    logger.warning(
                        "The engine is closed, but %s; its calls end with an error", where
                    )
                self._loop.abandon()

    @property
    def threads(self) -> list[Thread]:
        """Those of the engine, rewards, callbacks, late answers and the background, if alive."""
        own = [] if self._thread is None else [self._thread]
        others = (*self._loop.reward_executor.threads, *self._loop.background.threads)
        named = [each for each in threading.enumerate() if each.name in (CALLBACKS, READERS)]
        return [each for each in (*own, *others, *named) if each.is_alive()]

    # --- requests ---

    def submit(self, group: RequestGroup, *, wait: bool) -> None:
        """Submit a request group.

        Raises:
            EngineClosedError: The runtime is closed.
            EngineForkedError: The runtime belongs to another process.
            QueueFullError: The queue is full and `wait` is False.
        """
        self.check_process()
        with self._lock:
            self._ensure_thread()
            self._loop.admission.submit(group, wait=wait)
            self._num_groups[group.reward.key] += 1
        group.future.when_done(partial(self._on_group_done, group))
        self._watchdog.watch(group)

    def load(self, source: RewardSource) -> Future[Any]:
        """Load both models; return a future of them."""
        done: RequestFuture[Any] = RequestFuture()
        self.check_process()
        with self._lock:
            self._ensure_thread()
            requested_s = time.monotonic()
            self._loop.post(partial(self._loop.load, source, requested_s, done))
        return done

    def score(
        self, source: RewardSource, read: ReadInputs, *, in_background: bool
    ) -> Future[list[Score]]:
        """Score texts with a reward model; see `ScoreJobs.start`."""
        self.check_process()
        self.check_can_wait()
        with self._lock:
            self._ensure_thread()
            return self._loop.score_jobs.start(source, read, in_background=in_background)

    def loaded(self, source: RewardSource) -> tuple[PromptedModel, RewardModel] | None:
        """Return both models if they are loaded; never blocks."""
        self.check_process()
        return self._loop.loaded(source)

    def end_group(self, group: RequestGroup) -> None:
        """End a group; its answers have the finish reason "cancelled"."""
        self.check_process()
        group.cancel_requested = True  # also ends a group that has not started
        self._loop.post(partial(self._loop.end_group, group))

    def stats(self) -> EngineStats:
        """Return the current state and the totals."""
        self.check_process()
        return self._loop.stats()

    def check_process(self) -> None:
        """Refuse to run in a forked process.

        Raises:
            EngineForkedError: The current process was forked from the runtime's.
        """
        check_process(self._pid)

    def check_can_wait(self) -> None:
        """Refuse to wait on a thread for which the engine's thread waits.

        Raises:
            StarsError: The current thread is the engine's, or one of its rewards'.
        """
        if current_thread() is self._thread:
            raise StarsError(
                "the engine was called from its own thread, by a model, a reward model or a "
                "schedule, which would deadlock. Hint: call it from another thread"
            )
        if self._loop.reward_executor.called_from_reward:
            raise StarsError(
                "the engine was called by a reward that it waits for, which could deadlock. Hint: "
                "give the reward its own engine, StarsEngine(config)"
            )

    # --- inside ---

    def _on_group_done(self, group: RequestGroup, future: Future[Any]) -> None:
        group.owner = None  # break the reference cycle with the handle
        if future.cancelled():
            self.end_group(group)
        self._loop.post(partial(self._release_group, group.reward.key))

    def _end_missed(self, group: RequestGroup) -> None:
        """End a group whose deadline the engine's thread has missed, as soon as it can."""
        self._loop.admission.remove(group)
        self._loop.post(partial(self._loop.end_group, group, "deadline"))

    def _release_group(self, reward_key: str) -> None:
        with self._lock:
            self._num_groups[reward_key] -= 1

    def _release_collected(self) -> None:
        while self._collected:
            self._release_handle(self._collected.popleft(), keep_s=self._keep_alive_s)

    def _release_handle(self, reward_key: str, *, keep_s: float) -> None:
        self._handles[reward_key] -= 1
        if self._handles[reward_key] == 0:
            self._unused_until_s[reward_key] = time.monotonic() + keep_s

    def _ensure_thread(self) -> None:
        if self._closed:
            raise EngineClosedError("this engine is closed. Hint: create a new StarsEngine(config)")
        if self._thread is None:
            # A daemon thread, so that an idle engine does not keep the process alive.
            # `process_exit` ends it before the interpreter ends, which would abort a thread
            # inside torch.
            self._thread = Thread(target=self._run, name="stars-engine", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        """Run the loop; whatever ends it, fail all requests and refuse further ones."""
        cause = None
        try:
            self._loop.run()
        except BaseException as error:
            if not isinstance(error, Interrupted):
                logger.exception("The engine's thread failed; all requests end with an error")
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
            except Interrupted:  # the process is exiting; finish this first
                continue
            return
