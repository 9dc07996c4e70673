"""Overlays: at stations that want it, a JPEG of the newest part for operator panels, at most so many a second.

`hold` copies what is inspected of a frame before its slot in the camera's ring is needed; `committed` hands it over once the
ledger has its result; one thread of the lowest priority draws and encodes. Each station has one place there: what comes
while it is taken replaces what waits, but a part that passes never replaces one that does not. So nothing queues up, and
nobody waits for a picture.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from config.schema import Region, StationConfig
from connectors.contract import ResultOut, Verdict
from daemon.overlay_picture import draw_overlay, fitted, fitted_mask

log = logging.getLogger(__name__)

HELD_BYTES = 64 << 20
"""Pixels and masks, made small, that may wait for their result, of all stations; past it a picture is given up."""


@dataclass(frozen=True, eq=False)
class _Held:
    config: StationConfig
    pixels: NDArray[np.uint8] | None
    mask: NDArray[np.uint8] | None
    nbytes: int


@dataclass(frozen=True, eq=False)
class _Shown:
    result: ResultOut
    held: _Held


class Overlays:
    """Owner of the thread that draws. `hold`, `release` and `committed` return at once, and may be called from any thread."""

    def __init__(self, publish: Callable[[str, bytes], None], on_outcome: Callable[[str, str], None] = lambda *_: None) -> None:
        """publish: gets station and JPEG. on_outcome: gets station and one of connectors.metrics.OVERLAYS of each picture."""
        self._publish = publish
        self._on_outcome = on_outcome
        self._changed = threading.Condition()
        self._held: dict[str, _Held] = {}
        self._held_bytes = 0
        self._next: dict[str, _Shown] = {}
        self._due_s: dict[str, float] = {}
        """When each station's next picture may be drawn, monotonic."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="overlays", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Draw at once what waits, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(2.0)

    def hold(
        self,
        result_id: str,
        config: StationConfig,
        verdict: Verdict,
        pixels: NDArray[np.uint8] | None,
        mask: NDArray[np.uint8] | None,
        region: Region | None,
    ) -> None:
        """Copy what is inspected of a frame (pixels: all of it; mask: of the region), if its station wants overlays."""
        if not config.overlay:
            return
        crop = pixels
        if pixels is not None and region is not None:
            inside = pixels[region.y : region.y + region.height, region.x : region.x + region.width]
            # A frame that does not hold its region is shown whole.
            crop = inside if inside.shape[:2] == (region.height, region.width) else pixels
        most = config.overlay_width
        nbytes = sum(
            min(layer.nbytes, most * most * (3 if layer.ndim == 3 else 1)) for layer in (crop, mask) if layer is not None
        )
        with self._changed:
            waiting = self._next.get(config.name)
            if verdict == "pass" and waiting is not None and waiting.result.verdict != "pass":
                outcome = "replaced"
            elif self._held_bytes + nbytes > HELD_BYTES:
                outcome = "dropped"
            else:
                outcome = ""
                self._held_bytes += nbytes
        if not outcome:
            try:
                # Only a copy outlives the ring's slot, and no more of it is needed than is shown.
                small = None if crop is None else fitted(crop, most)
                held = _Held(config, small, None if mask is None else fitted_mask(mask, most), nbytes)
            except Exception as error:  # must not cost the frame its verdict
                outcome = "dropped" if isinstance(error, MemoryError) else "failed"
                log.warning("station %s: no overlay of result %s: %s", config.name, result_id, error)
                with self._changed:
                    self._held_bytes -= nbytes
        if outcome:
            self._on_outcome(config.name, outcome)
            return
        with self._changed:
            self._held[result_id] = held

    def release(self, result_id: str) -> None:
        """The result will not be: let go what was held for it."""
        with self._changed:
            held = self._held.pop(result_id, None)
            self._held_bytes -= held.nbytes if held else 0

    def committed(self, results: Iterable[ResultOut]) -> None:
        """The ledger has these results."""
        for result in results:
            with self._changed:
                held = self._held.pop(result.result_id, None)
                if held is None:
                    continue
                before = self._next.get(result.station)
                loses = before is not None and result.verdict == "pass" and before.result.verdict != "pass"
                given_up = held if loses else before.held if before is not None else None
                if not loses:
                    self._next[result.station] = _Shown(result, held)
                self._held_bytes -= given_up.nbytes if given_up else 0
                self._changed.notify()
            if given_up is not None:
                self._on_outcome(result.station, "replaced")

    # On the thread that draws.

    def _run(self) -> None:
        # Of Linux: the priority of this thread alone. Drawing takes what inspection leaves.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while (shown := self._take()) is not None:
            station = shown.result.station
            try:
                jpeg = draw_overlay(shown.result, shown.held.pixels, shown.held.mask, shown.held.config.overlay_width)
                self._publish(station, jpeg)
            except Exception:
                log.exception("station %s: no overlay of result %s", station, shown.result.result_id)
                self._on_outcome(station, "failed")
            else:
                self._on_outcome(station, "published")
            with self._changed:
                self._held_bytes -= shown.held.nbytes

    def _take(self) -> _Shown | None:
        """The picture that has been due longest, once one is; None when there is nothing left to draw at the stop."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                due = sorted((self._due_s.get(station, 0.0), station) for station in self._next)
                if due and (self._stopping or due[0][0] <= now_s):
                    shown = self._next.pop(due[0][1])
                    self._due_s[due[0][1]] = now_s + 1.0 / shown.held.config.overlay_max_hz
                    return shown
                if self._stopping:
                    return None
                self._changed.wait(due[0][0] - now_s if due else None)
