"""A frame as a camera's thread hands it on."""

import time
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from daemon.frame import Frame


def frame(pixels: NDArray[np.uint8] | None, fault: str | None = None) -> Frame:
    return Frame("cam", 1, 1, "host", "free_run", datetime.now(UTC), time.monotonic(), 0.0, pixels, fault, True)
