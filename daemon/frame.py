"""One frame as the daemon knows it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture with its camera timestamp, its number and how it was triggered.

    `pixels` is a read-only view into the camera's ring: the slot is free again when the last array referring to it
    dies, so keep it only while the frame is judged, and copy what must live longer. None when `fault` says why the
    frame cannot be judged, as `<kind>: <detail>` with kind `incomplete`, `unreadable` or `overload`.
    """

    camera: str
    number: int
    timestamp_ns: int
    """Camera ticks in nanoseconds, or nanoseconds since 1970 UTC when `clock` is "host"."""
    clock: Literal["camera", "host"]
    trigger: str
    """"free_run" or the line that triggers."""
    arrived_at: datetime
    """When the driver handed the frame over; aware, UTC."""
    arrived_s: float
    """The same moment on CLOCK_MONOTONIC, which all processes of the machine share."""
    acquire_s: float
    """Seconds from there into the daemon's hands."""
    pixels: NDArray[np.uint8] | None  # H x W (grey) or H x W x 3, RGB
    fault: str | None
    is_simulated: bool
