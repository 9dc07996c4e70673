"""The camera seam: open, next frame, trigger, close. Three drivers stand behind it: `pylon`, `aravis` and `folder`.

A camera is used by one thread of its own process (`daemon/grabber.py`) and never by the daemon itself, because a driver
call may hang for ever or take the process with it (pypylon issues 861, 235, 352, 116).
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from config.schema import AravisCamera, CameraConfig, FolderCamera, PylonCamera
from connectors.cameras.clock import Clock

Pixels = NDArray[np.uint8]  # H x W (grey) or H x W x 3 (RGB)


@dataclass(frozen=True)
class CameraInfo:
    """What was opened. `settings` are the features that were applied, as the camera reads them back."""

    driver: str
    model: str
    serial: str
    name: str
    frame_bytes: int
    """The most bytes that one frame's pixels can take (H * W * channels)."""
    is_simulated: bool
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CapturedFrame:
    """One frame from a driver.

    `pixels` is a view that holds until the next call of `next_frame`; None when `fault` says why the frame cannot be
    judged, as `<kind>: <detail>` with kind `incomplete` or `unreadable`.
    """

    number: int
    """The camera's own frame number, counting frames it sent and lost alike."""
    timestamp_ns: int
    """When it was taken, in nanoseconds; `clock` says since when."""
    clock: Clock
    pixels: Pixels | None
    fault: str | None = None
    timestamp_error_ns: int | None = None
    """The timestamp is at most so far from the true time; None where that is not known."""


class Camera(Protocol):
    """A device that delivers frames."""

    def open(self) -> CameraInfo:
        """Take the device, apply the configured features, read them back and start acquisition.

        Raises CameraError when the device is absent, taken, or refuses a feature; the message names all three.
        """

    def next_frame(self, timeout_s: float) -> CapturedFrame | None:
        """The next frame, or None when none came within `timeout_s` and the device still answers.

        Raises CameraError when the device is lost, CameraFinished when it has no more to show.
        """

    def trigger(self, timeout_s: float) -> bool:
        """Fire one software trigger once the device is ready for it. False when it was not within `timeout_s`.

        Raises CameraError when the device is lost, or cannot be triggered by software.
        """

    def close(self) -> None:
        """Let the device go. Safe to call twice and after an error."""


def create_camera(config: CameraConfig) -> Camera:
    """The driver for this configuration. Drivers are imported here, so that a folder needs no pylon."""
    match config:
        case PylonCamera():
            from connectors.cameras.pylon import PylonDriver

            return PylonDriver(config)
        case AravisCamera():
            from connectors.cameras.aravis import AravisDriver

            return AravisDriver(config)
        case FolderCamera():
            from connectors.cameras.folder import FolderDriver

            return FolderDriver(config)
