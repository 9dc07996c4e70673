"""Previews: the newest judged part of each station as a JPEG, for people who look at the operator page, and for nobody else.

While nobody looks, `hold` returns at once. While somebody does, it copies a small picture of a part at most `MOST_HZ` times a
second and station, and the more rarely the more browsers would fetch each; the JPEG is encoded when a browser asks for it, on the
HTTP port's threads, once for all who look.
"""

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from config.schema import Region
from connectors.contract import ResultOut, Verdict
from daemon.overlay_picture import fitted
from daemon.web.layers import Layers
from daemon.web.pictures import thumbnail

log = logging.getLogger(__name__)

MOST_HZ = 10.0
"""Previews of a station a second, of parts that pass and of parts that do not: neither keeps the other's from being shown."""
FETCHED_HZ = 50.0
"""Pictures a second that all browsers together fetch, of parts that pass and of parts that do not: what a fetch costs, the frames
wait for."""
KEPT = 4
"""Parts of a station that can be asked for: a browser asks a moment after it was told of one."""
SIDE = 640
"""Pixels of the longer side, at most."""
HELD = 64
"""Parts whose result is not committed yet, of all stations; the oldest is given up."""
LOOKS_S = 5.0
"""So long after it was last asked for, a station still counts as looked at."""
CLOSER_S = 12.0
"""The same of its own page, which shows what the model saw."""

Pixels = NDArray[np.uint8]


@dataclass(eq=False)
class Preview:
    """A judged part. pixels: H x W, or H x W x 3 (RGB), small. layers: what the model saw, where somebody looked at that."""

    result_id: str
    pixels: Pixels
    layers: Layers | None = None
    result: ResultOut | None = None
    """Once it is committed."""
    jpeg: bytes | None = None


class Previews:
    """`hold`, `release` and `committed` return at once; any method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._encoding = threading.Lock()
        self._held: dict[str, Preview] = {}
        self._newest: dict[str, dict[str, Preview]] = {}
        """By station and result_id, the newest last."""
        self._due_s: dict[tuple[str, bool], float] = {}
        """By station and whether the part does not pass."""
        self._every_s = 1.0 / MOST_HZ
        self._looks_until_s = 0.0
        self._closer_until_s: dict[str, float] = {}

    def look(self, fetchers: int | None = None) -> None:
        """Somebody looks at the page. fetchers: browsers times stations (None: as before)."""
        self._looks_until_s = time.monotonic() + LOOKS_S
        if fetchers is not None:
            self._every_s = max(1.0 / MOST_HZ, fetchers / FETCHED_HZ)

    def look_closer(self, station: str) -> None:
        """Somebody looks at this station's own page."""
        self._closer_until_s[station] = time.monotonic() + CLOSER_S

    def hold(
        self,
        result_id: str,
        station: str,
        verdict: Verdict,
        pixels: Pixels | None,
        anomaly_map: NDArray[np.float32] | None = None,
        region: Region | None = None,
    ) -> None:
        """Copy a small picture of a part (pixels: the whole frame), where somebody looks and one is due; its anomaly map (of the
        region of interest) as well, where somebody looks at the station's own page."""
        now_s = time.monotonic()
        if pixels is None or now_s > self._looks_until_s:
            return
        kinds = [(station, False)] if verdict == "pass" else [(station, False), (station, True)]
        with self._lock:
            if now_s < self._due_s.get(kinds[-1], 0.0):
                return
            for kind in kinds:
                self._due_s[kind] = now_s + self._every_s
        try:
            preview = Preview(result_id, fitted(pixels, SIDE))
            if anomaly_map is not None and now_s < self._closer_until_s.get(station, 0.0):
                # Of its own: a map may be a view of its whole batch.
                preview.layers = Layers(pixels.shape, anomaly_map.copy(), region)
        except Exception as error:  # must not cost the frame its verdict
            log.warning("station %s: no preview of result %s: %s", station, result_id, error)
            return
        with self._lock:
            self._held[result_id] = preview
            while len(self._held) > HELD:
                self._held.pop(next(iter(self._held)))

    def release(self, result_id: str) -> None:
        """The result will not be."""
        with self._lock:
            self._held.pop(result_id, None)

    def committed(self, results: Iterable[ResultOut]) -> set[str]:
        """The ledger has these results. Those (by result_id) that can be shown now."""
        shown = set()
        with self._lock:
            for result in results:
                if (preview := self._held.pop(result.result_id, None)) is not None:
                    kept = self._newest.setdefault(result.station, {})
                    preview.result = result
                    kept[result.result_id] = preview
                    while len(kept) > KEPT:
                        kept.pop(next(iter(kept)))
                    shown.add(result.result_id)
        return shown

    def encoded(self, station: str, result_id: str | None) -> bytes | None:
        """What `of` gives, where that is there already. Returns at once."""
        preview = self._find(station, result_id)
        return preview.jpeg if preview is not None else None

    def of(self, station: str, result_id: str | None) -> bytes | None:
        """The JPEG of a part (None: of the one that was judged last while somebody looked); None where there is none."""
        preview = self._find(station, result_id)
        return self.jpeg(preview) if preview is not None else None

    def find(self, result_id: str) -> Preview | None:
        """A part of any station, None when it is not (or no longer) there."""
        with self._lock:
            return next((kept[result_id] for kept in self._newest.values() if result_id in kept), None)

    def jpeg(self, preview: Preview) -> bytes:
        """Its picture."""
        with self._encoding:  # twenty who look cost one encoding
            if preview.jpeg is None:
                preview.jpeg = thumbnail(preview.pixels, SIDE)
            return preview.jpeg

    def _find(self, station: str, result_id: str | None) -> Preview | None:
        with self._lock:
            kept = self._newest.get(station, {})
            return kept.get(result_id) if result_id is not None else next(reversed(kept.values()), None)
