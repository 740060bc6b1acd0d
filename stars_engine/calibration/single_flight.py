"""A calibration job that any number of callers share, on its own thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Lock, Thread

from stars_engine.calibration.host import Host
from stars_engine.errors import CalibrationStoppedError, EngineClosedError
from stars_engine.runtime.futures import RequestFuture
from stars_engine.schedules import CalibratedSchedule
from stars_engine.threads.future_outcomes import set_exception, set_result

Work = Callable[[Host, Callable[[], bool]], CalibratedSchedule]
Done = Callable[["SingleFlightJob", CalibratedSchedule | None], None]


class SingleFlightJob:
    """Calibrates once for all callers that join while it runs; stops when no caller is left.

    Callers wait on futures, so an event loop needs no thread to wait, and a caller that gives up
    returns at once.

    Args:
        work: Calibrates with an engine; takes the engine and a function that says whether the
            result is still wanted.
        done: Called with the result, or None on failure, before the callers get theirs.
    """

    def __init__(self, work: Work, done: Done) -> None:
        self._work, self._done = work, done
        self._lock = Lock()
        self._waiters: dict[Future[CalibratedSchedule], Host] = {}
        self._thread: Thread | None = None
        self._is_closed = False

    def join(self, engine: Host) -> Future[CalibratedSchedule] | None:
        """Return a future of the result, which may be cancelled; None if the job is closed."""
        waiter: RequestFuture[CalibratedSchedule] = RequestFuture()
        with self._lock:
            if self._is_closed:
                return None
            self._waiters[waiter] = engine
            if self._thread is None:
                # A daemon thread, because it must not keep the process alive.
                self._thread = Thread(target=self._run, name="stars-calibration", daemon=True)
                self._thread.start()
        return waiter

    def is_wanted(self) -> bool:
        """Return whether a caller still waits; once none does, no caller can join any more."""
        with self._lock:
            self._is_closed = self._is_closed or all(waiter.done() for waiter in self._waiters)
            return not self._is_closed

    def _run(self) -> None:
        try:
            schedule = self._calibrate()
        except BaseException as error:  # noqa: BLE001 - the callers get it
            self._end(None, partial(set_exception, error=error))
        else:
            self._end(schedule, partial(set_result, value=schedule))

    def _calibrate(self) -> CalibratedSchedule:
        """Calibrate with the engine of a caller; if it is closed meanwhile, with another one."""
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
            raise CalibrationStoppedError("no request waits for the thresholds any more")
        return next((engine for engine in engines if not engine.closed), engines[0])

    def _others_open(self) -> bool:
        with self._lock:
            return any(not w.done() and not engine.closed for w, engine in self._waiters.items())

    def _end(
        self,
        schedule: CalibratedSchedule | None,
        set_outcome: Callable[[Future[CalibratedSchedule]], None],
    ) -> None:
        self._done(self, schedule)
        with self._lock:
            self._is_closed = True
            waiters, self._waiters = list(self._waiters), {}
        for waiter in waiters:
            set_outcome(waiter)
