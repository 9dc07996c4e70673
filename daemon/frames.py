"""The newest frame of each station, for commands that make a reference shot of it."""

import threading
import time

import numpy as np
from numpy.typing import NDArray

from daemon.frame import Frame
from daemon.ring import MAX_BYTES

Pixels = NDArray[np.uint8]  # H x W (grey) or H x W x 3, RGB
PIN_BYTES = 4 << 20
"""Larger frames are copied at once: they may have a ring of a few slots only, of which none can be spared."""


class NewestFrames:
    """Keeps each station's newest whole frame. `see` is called by the cameras' threads, the others by any.

    A frame is kept by reference, which holds one slot of its camera's ring; the ring is made one slot larger for it, so that
    keeping costs nothing and nobody misses the slot. `let_go` copies it, when a camera goes: a view keeps a whole ring in
    memory.
    """

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._newest: dict[str, Pixels] = {}
        self._counts: dict[str, int] = {}
        self._closed = False

    def see(self, station: str, frame: Frame, ring_slots: int) -> None:
        """Take note of a frame that has arrived; faults are passed over. `ring_slots`: as asked for, the spare one included."""
        pixels = frame.pixels
        if frame.fault is not None or pixels is None:
            return
        if pixels.nbytes > PIN_BYTES or pixels.nbytes * ring_slots > MAX_BYTES // 4:
            pixels = pixels.copy()
        with self._came:
            self._newest[station] = pixels
            self._counts[station] = self._counts.get(station, 0) + 1
            self._came.notify_all()

    def let_go(self, station: str) -> None:
        """The station's camera has gone: keep a copy."""
        with self._came:
            if (pixels := self._newest.get(station)) is not None:
                self._newest[station] = pixels.copy()

    def forget(self, station: str) -> None:
        """The station has gone."""
        with self._came:
            self._newest.pop(station, None)
            self._counts.pop(station, None)

    def last(self, station: str) -> Pixels | None:
        """A copy of the newest frame, None before the first."""
        with self._came:
            pixels = self._newest.get(station)
        return None if pixels is None else pixels.copy()

    def size(self, station: str) -> tuple[int, int] | None:
        """(width, height) of the newest frame, None before the first."""
        with self._came:
            pixels = self._newest.get(station)
        return None if pixels is None else (pixels.shape[1], pixels.shape[0])

    def next(self, station: str, timeout_s: float) -> Pixels | None:
        """A copy of the first frame to arrive from now on; None when none came in time or everything is being stopped."""
        deadline_s = time.monotonic() + timeout_s
        with self._came:
            seen = self._counts.get(station, 0)
            while self._counts.get(station, 0) == seen:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._closed:
                    return None
                self._came.wait(left_s)
            pixels = self._newest[station]
        return pixels.copy()

    def close(self) -> None:
        """Nobody waits any longer."""
        with self._came:
            self._closed = True
            self._came.notify_all()
