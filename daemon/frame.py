"""One frame as the daemon knows it."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from connectors.cameras.clock import Clock


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture with its camera timestamp, its number and how it was triggered.

    `pixels` is a read-only view into the camera's ring: the slot is free again when the last array referring to it
    dies, so keep it only while the frame is judged, and copy what must live longer. None when `fault` says why the
    frame cannot be judged, as `<kind>: <detail>` with kind `incomplete`, `unreadable`, `overload` or
    `lost` (nothing of it arrived: its number was left out).
    """

    camera: str
    number: int
    timestamp_ns: int
    """When it was taken, in nanoseconds; `clock` says since when."""
    clock: Clock
    trigger: str
    """"free_run", "software", or the line that triggers."""
    arrived_at: datetime
    """When the driver handed the frame over; aware, UTC."""
    arrived_s: float
    """The same moment on CLOCK_MONOTONIC, which all processes of the machine share."""
    acquire_s: float
    """Seconds from there into the daemon's hands."""
    pixels: NDArray[np.uint8] | None  # H x W (grey) or H x W x 3, RGB
    fault: str | None
    is_simulated: bool
    timestamp_error_ns: int | None = None
    """The timestamp is at most so far from the true time; None where that is not known."""
    lost: int = 0
    """How many frames this one stands for when it is a lost one: itself, and those before it that are too many to tell."""
