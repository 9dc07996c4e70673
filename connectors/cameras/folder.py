"""A folder of pictures played as a camera: for demonstrations, tests and for judging recorded parts again."""

import time
from pathlib import Path

from config.errors import CameraError, CameraFinished, PictureError
from config.schema import FolderCamera
from connectors.cameras import CameraInfo, CapturedFrame
from connectors.cameras.pictures import list_pictures, picture_size, read_picture


class FolderDriver:
    """Shows the pictures of a folder in name order, one every 1 / rate_hz seconds.

    The list is read again at each start of the loop. A picture that cannot be read is a faulty frame, never the end.
    """

    def __init__(self, config: FolderCamera) -> None:
        self._config = config
        self._period_s = 1 / config.rate_hz
        self._pictures: list[Path] = []
        self._next = 0
        self._number = 0
        self._due_s = 0.0
        self._frame_bytes = 0

    def open(self) -> CameraInfo:
        """List the folder. Raises CameraError when no picture is in it."""
        config = self._config
        self._list()
        self._frame_bytes = _largest_bytes(self._pictures)
        self._next = self._number = 0
        self._due_s = time.monotonic()
        settings = {
            "rate_hz": str(config.rate_hz),
            "loop": str(config.loop).lower(),
            "pictures": str(len(self._pictures)),
        }
        return CameraInfo("folder", "folder", str(config.path), config.name, self._frame_bytes, True, settings)

    def next_frame(self, timeout_s: float) -> CapturedFrame | None:
        """The next picture once it is due; None after `timeout_s` if it is not.

        Raises CameraFinished after the last picture of a folder that plays once, and CameraError when the folder was
        emptied or a picture appeared that is larger than those at opening.
        """
        wait_s = self._due_s - time.monotonic()
        if wait_s > timeout_s:
            time.sleep(timeout_s)
            return None
        if wait_s > 0:
            time.sleep(wait_s)
        if self._next == len(self._pictures):
            if not self._config.loop:
                raise CameraFinished(f"Camera {self._config.name}: all {self._number} pictures of {self._config.path} are shown")
            self._list()
            self._next = 0
        path = self._pictures[self._next]
        # A reader that is far behind starts a new beat: a burst of late pictures is nothing a camera would send.
        self._due_s = max(self._due_s, time.monotonic() - self._period_s) + self._period_s
        number, self._next, self._number = self._number, self._next + 1, self._number + 1
        try:
            pixels = read_picture(path)
        except PictureError as error:
            return CapturedFrame(number, time.time_ns(), "host", None, f"unreadable: {error}")
        if pixels.nbytes > self._frame_bytes:
            raise CameraError(
                f"Camera {self._config.name}: {path} needs {pixels.nbytes} bytes, the largest at opening needed "
                f"{self._frame_bytes}. The camera is opened again for it"
            )
        return CapturedFrame(number, time.time_ns(), "host", pixels)

    def trigger(self, timeout_s: float) -> bool:  # noqa: ARG002 - the seam's
        """A folder has no trigger: always CameraError."""
        raise CameraError(f"Camera {self._config.name}: a folder of pictures cannot be triggered. Use a camera for it")

    def close(self) -> None:
        """Nothing is held."""

    def _list(self) -> None:
        self._pictures = list_pictures(self._config.path)
        if not self._pictures:
            missing = "holds no picture" if self._config.path.is_dir() else "is not a folder"
            raise CameraError(f"Camera {self._config.name}: {self._config.path} {missing}. Put png, jpg, bmp or tif files there")


def _largest_bytes(pictures: list[Path]) -> int:
    largest = 1
    for path in pictures:
        try:
            width, height = picture_size(path)
        except PictureError:
            continue  # it will be a faulty frame when its turn comes
        largest = max(largest, width * height * 3)
    return largest
