"""Alarms: what is to be done at a moment, however busy the others are (deadlines, frames that do not come)."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Alarms:
    """Owner of one thread. `at` may be called from any thread; what is called must be quick, and looks itself whether it is
    still wanted."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="alarms", daemon=True)
        self._thread.start()

    def at(self, when_s: float, act: Callable[[], None]) -> None:
        """Call `act` at that moment of time.monotonic(), or at once when it has passed."""
        with self._wake:
            heapq.heappush(self._due, (when_s, next(self._numbers), act))
            if self._due[0][2] is act:
                self._wake.notify()

    def stop(self) -> None:
        """What is not due yet will not be done."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._stopping and (not self._due or self._due[0][0] > time.monotonic()):
                    self._wake.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._stopping:
                    return
                _, _, act = heapq.heappop(self._due)
            try:
                act()
            except Exception:  # one station's trouble is not the others'
                log.exception("an alarm failed")
            del act  # it may hold a frame
