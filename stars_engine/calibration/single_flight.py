"""One calibration that any number of callers wait for, on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Lock, Thread

from stars_engine.calibration.host import Host
from stars_engine.errors import CalibrationStoppedError, EngineClosedError
from stars_engine.runtime.futures import CallFuture, reject, resolve
from stars_engine.schedules import CalibratedSchedule

Work = Callable[[Host, Callable[[], bool]], CalibratedSchedule]
Done = Callable[["Job", CalibratedSchedule | None], None]


class Job:
    """Finds thresholds for all who ask while it is going on, and stops when none is left.

    Callers wait for futures, so that an event loop needs no thread to wait, and one that gives up
    is free at once.

    Args:
        work: Finds them by an engine; is to look whether they are still wanted.
        done: Told of the result, or of its failure, before those who wait.
    """

    def __init__(self, work: Work, done: Done) -> None:
        self._work, self._done = work, done
        self._lock = Lock()
        self._waiters: dict[Future[CalibratedSchedule], Host] = {}
        self._thread: Thread | None = None
        self._over = False

    def join(self, engine: Host) -> Future[CalibratedSchedule] | None:
        """Wait for it too, by a future that may be cancelled; None where it is over."""
        waiter: CallFuture[CalibratedSchedule] = CallFuture()
        with self._lock:
            if self._over:
                return None
            self._waiters[waiter] = engine
            if self._thread is None:
                # A daemon: it waits for the engine's thread, and keeps no process alive.
                self._thread = Thread(target=self._run, name="stars-calibration", daemon=True)
                self._thread.start()
        return waiter

    def is_wanted(self) -> bool:
        """Whether anybody still waits; once nobody does, nobody can join any more."""
        with self._lock:
            self._over = self._over or all(waiter.done() for waiter in self._waiters)
            return not self._over

    def _run(self) -> None:
        try:
            schedule = self._find()
        except BaseException as error:  # noqa: BLE001 - it is told to those who wait
            self._end(None, partial(reject, error=error))
        else:
            self._end(schedule, partial(resolve, value=schedule))

    def _find(self) -> CalibratedSchedule:
        """Use the engine of one who waits; where that is closed meanwhile, another's."""
        while True:
            engine = self._open_engine()
            try:
                return self._work(engine, self.is_wanted)
            except EngineClosedError:
                if not engine.closed or not self._others_open():
                    raise

    def _open_engine(self) -> Host:
        with self._lock:
            engines = [engine for waiter, engine in self._waiters.items() if not waiter.done()]
        if not engines:
            raise CalibrationStoppedError("nobody waits for the thresholds any more")
        return next((engine for engine in engines if not engine.closed), engines[0])

    def _others_open(self) -> bool:
        with self._lock:
            return any(not w.done() and not engine.closed for w, engine in self._waiters.items())

    def _end(
        self,
        schedule: CalibratedSchedule | None,
        tell: Callable[[Future[CalibratedSchedule]], None],
    ) -> None:
        self._done(self, schedule)
        with self._lock:
            self._over = True
            waiters, self._waiters = list(self._waiters), {}
        for waiter in waiters:
            tell(waiter)
