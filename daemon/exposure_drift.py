"""Whether frames still look as the shots did, to a light meter: grey level, saturation and focus (docs/metrics.md).

It is measured off the inspection path: a copy of a few pixels, once a second and station, goes to a thread of its own.
"""

import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from config.errors import AprilcamError
from config.schema import Region
from connectors.scraped import EXPOSURE_DRIFT, Reading
from daemon.frame import Frame
from daemon.shots import Shots
from daemon.station import Program, Station

log = logging.getLogger(__name__)

MEASURES = ("mean", "saturation", "focus")
LEAST_DEVIATION = (2.0, 0.005, 0.1)
"""Shots that were taken one after the other hardly differ; a part that is a little darker is no drift."""
SATURATED = 250
"""Not 255: a JPEG of a saturated pixel is a little off."""
EVERY_S = 1.0
RETRY_S = 60.0
"""After a failure, which is logged each time."""
RECENT = 30
ENOUGH = 10
COARSE_PX = 256
"""Pixels a side that grey level and saturation are measured on: every n-th, not their means, which would hide saturation."""
TILES, TILE_PX = 4, 64
"""Focus is lost in a smaller picture, so it is measured on TILES x TILES pieces of this size."""
WAITING = 16
"""Samples in memory at most, of some 200 kB each."""

Pixels = NDArray[np.uint8]  # H x W (grey) or H x W x 3, RGB
Measured = tuple[float, ...]
"""In the order of MEASURES."""


@dataclass(frozen=True, eq=False)
class Sample:
    """What is kept of a picture: every n-th pixel, and tiles at full size. Copies."""

    coarse: Pixels
    tiles: tuple[Pixels, ...]


def sample(pixels: Pixels, region: Region | None) -> Sample | None:
    """Of the region, None when the picture does not hold it or is too small to have a focus."""
    if region is not None:
        pixels = pixels[region.y : region.y + region.height, region.x : region.x + region.width]
        if pixels.shape[:2] != (region.height, region.width):
            return None
    height, width = pixels.shape[:2]
    if min(height, width) < 3:
        return None
    down, right = max(1, height // COARSE_PX), max(1, width // COARSE_PX)
    tall, wide = min(TILE_PX, height), min(TILE_PX, width)
    tops = {round(place * (height - tall) / (TILES - 1)) for place in range(TILES)}
    lefts = {round(place * (width - wide) / (TILES - 1)) for place in range(TILES)}
    tiles = tuple(pixels[top : top + tall, left : left + wide].copy() for top in sorted(tops) for left in sorted(lefts))
    return Sample(pixels[::down, ::right].copy(), tiles)


def measure(own: Sample) -> Measured:
    """Mean grey level (0 to 255), share of saturated pixels (0 to 1), logarithm of the variance of the Laplacian.

    The last is the usual measure of focus (Pech-Pacheco et al., ICPR 2000), its logarithm as light scales it.
    """
    brightest = own.coarse if own.coarse.ndim == 2 else own.coarse.max(axis=2)
    edges = np.concatenate([_laplacian(_grey(tile)).ravel() for tile in own.tiles])
    # 0.01: a picture without any detail has a finite focus.
    focus = math.log(float(edges.var()) + 0.01)
    return float(_grey(own.coarse).mean()), float((brightest >= SATURATED).mean()), focus


def _grey(pixels: Pixels) -> NDArray[np.float32]:
    if pixels.ndim == 2:
        return pixels.astype(np.float32)
    return np.asarray(pixels @ np.array([0.299, 0.587, 0.114], np.float32), np.float32)


def _laplacian(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    middle = grey[1:-1, 1:-1]
    return np.asarray(grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle, np.float32)


@dataclass(frozen=True)
class _Shots:
    """Mean and deviation of what the shots measure; None: there are none to compare with."""

    means: Measured
    deviations: Measured


@dataclass
class _Seen:
    """A station's newest measures, for one program's shots."""

    key: tuple[str, str, Region | None]
    shots: _Shots | None
    recent: deque[Measured] = field(default_factory=lambda: deque(maxlen=RECENT))


class ExposureDrift:
    """Owner of a thread and of what it measures. `see` is called by the cameras' threads, the others by any."""

    def __init__(
        self, stations: Mapping[str, Station], shots: Shots, on_skipped: Callable[[], None], every_s: float = EVERY_S
    ) -> None:
        """stations: by name; they may come and go. on_skipped: a sample found no room."""
        self._stations = stations
        self._shots = shots
        self._on_skipped = on_skipped
        self._every_s = every_s
        self._next_s: dict[str, float] = {}
        self._work: queue.Queue[tuple[str, Program, Sample] | None] = queue.Queue(WAITING)
        self._seen: dict[str, _Seen] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exposure", daemon=True)
        self._thread.start()

    def see(self, station: str, frame: Frame) -> None:
        """A frame arrived. Takes a copy of a few pixels now and then, and returns."""
        own = self._stations.get(station)
        if frame.pixels is None or own is None or frame.arrived_s < self._next_s.get(station, 0.0):
            return
        self._next_s[station] = frame.arrived_s + self._every_s
        if self._work.full():
            self._on_skipped()
            return
        program = own.program
        taken = sample(frame.pixels, program.region)
        if taken is not None:
            try:
                self._work.put_nowait((station, program, taken))
            except queue.Full:
                self._on_skipped()

    def readings(self) -> Iterator[Reading]:
        """For the stations that are there and have measured enough."""
        for station, seen in list(self._seen.items()):
            if station not in self._stations or seen.shots is None or len(seen.recent) < ENOUGH:
                continue
            middle = np.median(np.array(list(seen.recent)), axis=0)
            for number, name in enumerate(MEASURES):
                distance = (float(middle[number]) - seen.shots.means[number]) / seen.shots.deviations[number]
                yield EXPOSURE_DRIFT.of(distance, station, name)

    def close(self) -> None:
        """End; what waits is not measured."""
        self._stopping.set()
        with suppress(queue.Full):  # then it is awake, and looks at `_stopping`
            self._work.put_nowait(None)
        self._thread.join()

    # On its thread.

    def _run(self) -> None:
        # Of Linux: the priority of this thread alone.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while not self._stopping.is_set():
            item = self._work.get()
            if item is None:
                return
            try:
                self._measure(*item)
            except Exception:  # whatever it is, frames are judged, and the next sample is measured
                log.exception("station %s: its exposure could not be measured", item[0])
                self._next_s[item[0]] = time.monotonic() + RETRY_S

    def _measure(self, station: str, program: Program, taken: Sample) -> None:
        for gone in [name for name in list(self._seen) if name not in self._stations]:
            del self._seen[gone]
            self._next_s.pop(gone, None)
        if program.calibration is None:
            return  # no bank yet: the shots are still being read by those who make it
        key = (program.recipe.name, program.bank.hash if program.bank is not None else "", program.region)
        seen = self._seen.get(station)
        if seen is None or seen.key != key:
            shots = next((own.shots for own in list(self._seen.values()) if own.key == key), None)
            seen = _Seen(key, shots or self._of_shots(program))
            self._seen[station] = seen
        if seen.shots is not None:
            seen.recent.append(measure(taken))

    def _of_shots(self, program: Program) -> _Shots | None:
        measured: list[Measured] = []
        for shot in self._shots.all(program.recipe.name):
            if self._stopping.is_set():
                return None
            try:
                taken = sample(self._shots.read(shot), program.region)
            except (AprilcamError, OSError) as error:
                log.warning("recipe %s: a shot does not count for the exposure drift: %s", program.recipe.name, error)
                continue
            if taken is not None:
                measured.append(measure(taken))
        if not measured:
            return None
        table = np.array(measured)
        spread = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(MEASURES))
        deviations = np.maximum(spread, LEAST_DEVIATION)
        return _Shots(tuple(table.mean(axis=0).tolist()), tuple(deviations.tolist()))
