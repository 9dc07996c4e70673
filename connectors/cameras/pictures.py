"""Picture files as pixels, for folder cameras and reference shots alike: one path from a file to numbers."""

import io
import threading
import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from config.errors import PictureError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 1 << 30
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_header_lock = threading.Lock()  # warnings.catch_warnings swaps a global, so one thread at a time


def list_pictures(folder: Path) -> list[Path]:
    """The picture files directly in `folder`, in name order (an empty list when it is missing or empty).

    Hidden files are left out: they are half-written copies (rsync, editors) and macOS resource forks.
    """
    try:
        paths = list(folder.iterdir())
    except OSError:
        return []
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header; nothing is decoded. Raises PictureError."""
    _check_size(path)
    width, height, _ = _header(path, str(path))
    return width, height


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The pixels of a file, see `decode_picture`. Raises PictureError."""
    _check_size(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: {(error.strerror or str(error)).lower()}. Use a whole png, jpg, bmp or tif file") from None
    return decode_picture(data, str(path))


def decode_picture(data: bytes, name: str) -> NDArray[np.uint8]:
    """Pixels H x W (grey files) or H x W x 3, RGB, of a whole picture file; `name` is for messages.

    Transparency is dropped, 16 bits are scaled to 8, EXIF rotation is ignored.
    Raises PictureError when the file is empty, not a whole picture, or larger than 100 megapixels.
    """
    if not data:
        raise PictureError(f"{name}: empty file. Replace it")
    _, _, mode = _header(io.BytesIO(data), name)
    # OpenCV makes four colour channels of grey with transparency; grey must stay grey.
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH if mode in ("LA", "La") else cv2.IMREAD_UNCHANGED
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise PictureError(f"{name}: cannot be read ({error}). Replace the file") from None
    if decoded is None:
        raise PictureError(f"{name}: damaged or incomplete {Path(name).suffix[1:] or 'picture'}. Replace the file")
    if decoded.dtype == np.uint16:
        decoded = ((decoded.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if decoded.dtype != np.uint8:
        raise PictureError(f"{name}: numbers of type {decoded.dtype}. Save it with 8 or 16 bits per channel")
    if decoded.ndim == 2 or decoded.shape[2] == 1:
        return np.ascontiguousarray(decoded.reshape(decoded.shape[:2]), dtype=np.uint8)
    return np.ascontiguousarray(decoded[:, :, 2::-1], dtype=np.uint8)


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise PictureError(f"{path}: {(error.strerror or str(error)).lower()}. Use a whole png, jpg, bmp or tif file") from None
    if size == 0:
        raise PictureError(f"{path}: empty file. Replace it")
    if size > MAX_FILE_BYTES:
        raise PictureError(f"{path}: too large ({size} bytes, at most {MAX_FILE_BYTES}). Scale it down")


def _header(source: Path | io.BytesIO, name: str) -> tuple[int, int, str]:
    try:
        with _header_lock, warnings.catch_warnings():
            # Pillow warns of pictures near our own limit and of odd TIFF tags; the limit below decides.
            warnings.simplefilter("ignore")
            with Image.open(source, formats=_FORMATS) as image:
                (width, height), mode = image.size, image.mode
    except Image.DecompressionBombError:
        raise PictureError(f"{name}: too large (over {MAX_PIXELS} pixels). Scale it down") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not a picture"
        raise PictureError(f"{name}: {reason}. Use a whole png, jpg, bmp or tif file") from None
    if width * height > MAX_PIXELS:
        raise PictureError(f"{name}: too large ({width} x {height}, at most {MAX_PIXELS} pixels). Scale it down")
    return width, height, mode
