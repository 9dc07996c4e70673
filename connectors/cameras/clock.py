"""Whose time a frame's timestamp is: the camera's clock on UTC, a PTP master's, the camera's own ticks, or the host's."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from connectors.cameras.features import Nodes, Refused, find

Clock = Literal["camera", "host", "ptp", "camera_utc"]
"""camera: the camera's ticks in nanoseconds, from a start of its own. host: nanoseconds since 1970 UTC, when the driver had the
frame. ptp: nanoseconds since 1970 as the PTP master counts them: TAI (37 s ahead of UTC since 2017), unless the plant's master
sends UTC. camera_utc: the camera's ticks mapped to nanoseconds since 1970 UTC, as this host's clock has it."""

REFRESH_S = 10.0
MAX_DRIFT = 100e-6
"""What a camera's crystal and the host's may differ by, each good for 50 ppm."""
_TRIES = 5
_COARSEST_S = 0.01
_NS = 1_000_000_000


@dataclass(frozen=True)
class Stamp:
    """When a frame was taken. `error_ns`: at most so far from the true time, None where that is not known."""

    timestamp_ns: int
    clock: Clock
    error_ns: int | None = None


@dataclass(frozen=True)
class Pair:
    """One moment on both clocks: the camera's lies within `error_ns` of the host's."""

    camera_ns: int
    host_ns: int
    error_ns: int


class CameraClock:
    """Turns the camera time of a frame into a stamp. Owned by the driver's thread.

    The camera is asked to latch its clock, and the host's clock is read before and after: the latch lies between. The
    quickest of five is kept. Between two such readings the error grows by 100 ppm of the time that has passed.
    """

    def __init__(self, nodes: Nodes, *, ptp: bool) -> None:
        """Reads the clock for the first time. `ptp`: the camera was told to follow a PTP master."""
        self._nodes = nodes
        self._ptp = ptp
        self._latch, self._value = (find(nodes, name) for name in ("TimestampLatch", "TimestampLatchValue"))
        self._tick_hz = _NS
        with suppress(Refused):
            if nodes.has("GevTimestampTickFrequency") and (tick_hz := nodes.read("GevTimestampTickFrequency")):
                self._tick_hz = int(tick_hz)
        self.pair: Pair | None = None
        self.follows_master = False
        self._read_s = 0.0
        self.refresh()
        if self.pair is not None and self._stands_still(self.pair):
            self.pair = self._latch = None

    def refresh(self) -> None:
        """Ask the camera again if the last answer is older than 10 s; takes some milliseconds then."""
        if self._read_s and time.monotonic() - self._read_s < REFRESH_S:
            return
        try:
            self.follows_master = self._ptp and self._ptp_status() == "Slave"
            if not self.follows_master:
                pairs = [pair for _ in range(_TRIES) if (pair := self._measure()) is not None]
                self.pair = min(pairs, key=lambda pair: pair.error_ns, default=None)
        except Refused:
            # Once is enough: a camera that has just been cut off lets each question wait for seconds.
            self.follows_master, self.pair = False, None
        self._read_s = time.monotonic()

    def ticks_ns(self, ticks: int) -> int:
        """The camera's ticks in nanoseconds."""
        return ticks * _NS // self._tick_hz

    def stamp(self, camera_ns: int) -> Stamp:
        """The stamp of a frame that the camera took at `camera_ns` (0: it gave no time)."""
        if not camera_ns:
            return Stamp(time.time_ns(), "host")
        if self.follows_master:
            return Stamp(camera_ns, "ptp")
        if (pair := self.pair) is None:
            return Stamp(camera_ns, "camera")
        since_ns = camera_ns - pair.camera_ns
        return Stamp(pair.host_ns + since_ns, "camera_utc", pair.error_ns + round(abs(since_ns) * MAX_DRIFT))

    def _measure(self) -> Pair | None:
        if self._latch is None or self._value is None:
            return None
        before_ns = time.time_ns()
        self._nodes.write(self._latch, True)
        after_ns = time.time_ns()
        ticks = self._nodes.read(self._value)
        if not isinstance(ticks, int) or not ticks or after_ns < before_ns:
            return None
        error_ns = (after_ns - before_ns + 1) // 2
        return Pair(self.ticks_ns(ticks), before_ns + error_ns, error_ns)

    def _ptp_status(self) -> str | None:
        """The standard's word, "Slave" once the camera follows a master."""
        if (latch := find(self._nodes, "PtpDataSetLatch")) is not None:
            self._nodes.write(latch, True)
        status = find(self._nodes, "PtpStatus")
        return None if status is None else str(self._nodes.read(status))

    def _stands_still(self, first: Pair) -> bool:
        time.sleep(_COARSEST_S)
        with suppress(Refused):
            again = self._measure()
            return again is None or again.camera_ns <= first.camera_ns
        return True
