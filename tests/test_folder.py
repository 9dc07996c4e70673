"""connectors/cameras/folder.py and pictures.py: a folder played as a camera, and reading its files."""

import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from config.errors import CameraError, CameraFinished, PictureError
from config.schema import FolderCamera
from connectors.cameras import CapturedFrame
from connectors.cameras.folder import FolderDriver
from connectors.cameras.pictures import list_pictures, picture_size, read_picture
from tests.conftest import COLOURS, DrawPictures


def driver(path: Path, rate_hz: float = 1000.0, loop: bool = True) -> FolderDriver:
    return FolderDriver(FolderCamera(name="cam", driver="folder", path=path, rate_hz=rate_hz, loop=loop))


def shown(camera: FolderDriver) -> CapturedFrame:
    frame = camera.next_frame(1.0)
    assert frame is not None
    return frame


# pictures


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff"])
def test_colour_is_read_as_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), np.full((4, 6, 3), COLOURS[0][::-1], np.uint8))
    pixels = read_picture(path)
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, 0].tolist() == list(COLOURS[0])
    assert picture_size(path) == (6, 4)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "tif"])
def test_grey_stays_grey(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("L", (16, 8), 77).save(path)
    pixels = read_picture(path)
    assert pixels.shape == (8, 16)
    assert (pixels == 77).all()


@pytest.mark.parametrize(("mode", "colour", "expected"), [("RGBA", (200, 100, 30, 0), [200, 100, 30]), ("LA", (77, 3), 77)])
def test_transparency_is_dropped(tmp_path: Path, mode: str, colour: tuple[int, ...], expected: object) -> None:
    Image.new(mode, (5, 3), colour).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[0, 0].tolist() == expected


@pytest.mark.parametrize(("deep", "flat"), [(65_535, 255), (0, 0), (257 * 90, 90), (257 * 90 + 129, 91)])
def test_16_bits_are_scaled_to_8(tmp_path: Path, deep: int, flat: int) -> None:
    for shape in ((3, 4), (3, 4, 3)):
        cv2.imwrite(str(tmp_path / "a.png"), np.full(shape, deep, np.uint16))
        assert (read_picture(tmp_path / "a.png") == flat).all()


def test_float_picture_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.tiff"), np.ones((3, 4), np.float32))
    with pytest.raises(PictureError, match=r"a\.tiff: numbers of type float32\. Save it with 8 or 16 bits"):
        read_picture(tmp_path / "a.tiff")


def noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
def test_half_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), noise())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PictureError, match=rf"a\.{suffix}: .*(Replace|whole)"):
        read_picture(path)


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty file"), (b"hello", "not a picture"), (None, "no such file")])
def test_what_is_no_picture_is_refused_with_the_reason(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PictureError, match=rf"a\.png: {reason}"):
        read_picture(path)


@pytest.mark.parametrize("side", [9_600, 10_001, 30_000])  # 92 megapixels: Pillow would warn; 900: Pillow would raise
def test_size_is_judged_before_decoding(tmp_path: Path, side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"\0\0\0\x0d" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    if side < 10_000:
        assert picture_size(tmp_path / "a.png") == (side, side)
    else:
        with pytest.raises(PictureError, match="too large"):
            read_picture(tmp_path / "a.png")


def test_listing_is_by_name_and_leaves_out_what_is_no_picture(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt", ".a.png.tmp", ".hidden.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_pictures(tmp_path)] == ["a.JPG", "b.png"]
    assert list_pictures(tmp_path / "missing") == []


# the camera


def test_pictures_come_in_name_order_and_again(draw_pictures: DrawPictures) -> None:
    camera = driver(draw_pictures(3))
    info = camera.open()
    assert info.is_simulated
    assert info.frame_bytes == 64 * 48 * 3
    frames = [shown(camera) for _ in range(4)]
    assert [frame.number for frame in frames] == [0, 1, 2, 3]
    assert [tuple(f.pixels[0, 0]) for f in frames if f.pixels is not None] == [*COLOURS, COLOURS[0]]
    assert abs(frames[-1].timestamp_ns - time.time_ns()) < 1e9
    assert frames[0].clock == "host"


def test_plays_once_then_is_finished(draw_pictures: DrawPictures) -> None:
    camera = driver(draw_pictures(2), loop=False)
    camera.open()
    shown(camera), shown(camera)
    with pytest.raises(CameraFinished, match="all 2 pictures"):
        camera.next_frame(1.0)


def test_damaged_pictures_are_faults_and_the_rest_goes_on(draw_pictures: DrawPictures) -> None:
    folder = draw_pictures(3)
    (folder / "00.png").write_bytes(b"")
    (folder / "01.png").write_bytes((folder / "02.png").read_bytes()[:60])
    camera = driver(folder)
    camera.open()
    empty, damaged, whole = (shown(camera) for _ in range(3))
    assert empty.pixels is None
    assert "00.png: empty file" in str(empty.fault)
    assert damaged.pixels is None
    assert str(damaged.fault).startswith("unreadable: ")
    assert "01.png" in str(damaged.fault)
    assert whole.fault is None
    assert whole.pixels is not None


def test_rate_is_kept_without_drift_though_waits_are_cut_short(draw_pictures: DrawPictures) -> None:
    camera = driver(draw_pictures(1), rate_hz=50)
    camera.open()
    start_s, count = time.monotonic(), 0
    while count < 21:
        asked_s = time.monotonic()
        count += camera.next_frame(0.004) is not None
        assert time.monotonic() - asked_s < 0.1
    assert 0.4 <= time.monotonic() - start_s < 0.5


def test_late_reader_gets_no_burst(draw_pictures: DrawPictures) -> None:
    camera = driver(draw_pictures(1), rate_hz=20)
    camera.open()
    shown(camera)
    time.sleep(0.3)
    got = [camera.next_frame(0.0) is not None for _ in range(4)]
    assert got.count(True) <= 2


def test_new_pictures_are_seen_at_the_next_round(draw_pictures: DrawPictures) -> None:
    folder = draw_pictures(1)
    camera = driver(folder)
    camera.open()
    shown(camera)
    draw_pictures(2)
    shown(camera)
    frame = shown(camera)
    assert frame.pixels is not None
    assert tuple(frame.pixels[0, 0]) == COLOURS[1]


def test_larger_picture_needs_a_new_opening(draw_pictures: DrawPictures) -> None:
    folder = draw_pictures(1)
    camera = driver(folder)
    camera.open()
    shown(camera)
    draw_pictures(1, width=65)
    with pytest.raises(CameraError, match="opened again"):
        shown(camera)
    assert camera.open().frame_bytes == 65 * 48 * 3
    assert shown(camera).pixels is not None


def test_missing_and_empty_folders_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="holds no picture"):
        driver(tmp_path).open()
    with pytest.raises(CameraError, match=r"cam: .*missing is not a folder"):
        driver(tmp_path / "missing").open()
