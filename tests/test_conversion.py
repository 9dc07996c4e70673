"""connectors/cameras/conversion.py: every format against pixels that are known, packed here by the formats' own definition."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from connectors.cameras.conversion import channels_of, convert

WIDTH, HEIGHT = 6, 5


def ramp(bits: int) -> NDArray[np.uint16]:
    """H x W pixels that use all bits."""
    count = WIDTH * HEIGHT
    return (np.arange(count, dtype=np.int64) * ((1 << bits) - 1) // (count - 1)).astype(np.uint16).reshape(HEIGHT, WIDTH)


def bit_stream(pixels: NDArray[Any], bits: int) -> bytes:
    """PFNC's packing: the lowest bit of the first pixel first."""
    total = 0
    for index, pixel in enumerate(pixels.ravel().tolist()):
        total |= pixel << (index * bits)
    return total.to_bytes(-(-pixels.size * bits // 8), "little")


def packed12(pixels: NDArray[np.uint16]) -> bytes:
    """GigE Vision's packing: high byte, both low halves, high byte."""
    out = bytearray()
    flat = [*pixels.ravel().tolist(), 0]
    for first, second in zip(flat[: pixels.size : 2], flat[1::2], strict=True):
        out += bytes((first >> 4, (first & 15) | (second & 15) << 4, second >> 4))
    return bytes(out)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_any_depth_keeps_its_highest_8_bits(bits: int) -> None:
    pixels = ramp(bits)
    data = pixels.astype(np.uint8).tobytes() if bits == 8 else pixels.astype("<u2").tobytes()
    assert np.array_equal(convert(data, f"Mono{bits}", WIDTH, HEIGHT), pixels >> (bits - 8))


@pytest.mark.parametrize("bits", [10, 12])
def test_packed_grey_keeps_its_highest_8_bits(bits: int) -> None:
    pixels = ramp(bits)
    assert np.array_equal(convert(bit_stream(pixels, bits), f"Mono{bits}p", WIDTH, HEIGHT), pixels >> (bits - 8))
    odd = pixels[:, :5]
    assert np.array_equal(convert(bit_stream(odd, bits), f"Mono{bits}p", 5, HEIGHT), odd >> (bits - 8))


def test_gige_visions_own_12_bit_packing() -> None:
    pixels = ramp(12)
    assert np.array_equal(convert(packed12(pixels), "Mono12Packed", WIDTH, HEIGHT), pixels >> 4)


@pytest.mark.parametrize(("order", "pattern"), [("RG", "RGGB"), ("GR", "GRBG"), ("GB", "GBRG"), ("BG", "BGGR")])
@pytest.mark.parametrize("bits", ["8", "12", "12p"])
def test_bayer_mosaics_become_the_colour_they_were_made_of(order: str, pattern: str, bits: str) -> None:
    colour = {"R": 200, "G": 100, "B": 30}
    mosaic = np.tile(np.array([colour[letter] for letter in pattern], np.uint16).reshape(2, 2), (8, 8))
    data = {
        "8": mosaic.astype(np.uint8).tobytes(),
        "12": (mosaic << 4).tobytes(),
        "12p": bit_stream(mosaic << 4, 12),
    }[bits]
    picture = convert(data, f"Bayer{order}{bits}", 16, 16)
    assert picture.shape == (16, 16, 3)
    assert np.array_equal(picture[4:12, 4:12], np.broadcast_to([200, 100, 30], (8, 8, 3)))


def test_colour_becomes_rgb() -> None:
    rgb = np.arange(WIDTH * HEIGHT * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    assert np.array_equal(convert(rgb.tobytes(), "RGB8", WIDTH, HEIGHT), rgb)
    assert np.array_equal(convert(rgb[:, :, ::-1].tobytes(), "BGR8", WIDTH, HEIGHT), rgb)


@pytest.mark.parametrize(("name", "order"), [("YUV422_8", (0, 1, 2, 3)), ("YUV422_8_UYVY", (1, 0, 3, 2))])
def test_yuv_becomes_rgb(name: str, order: tuple[int, ...]) -> None:
    red = bytes(np.array([81, 90, 81, 240], np.uint8)[list(order)])  # Y U Y V of full red, by BT.601
    picture = convert(red * (WIDTH * HEIGHT // 2), name, WIDTH, HEIGHT)
    assert np.abs(picture.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("name", ["Mono8", "Mono12", "Mono10p", "Mono12Packed", "RGB8", "BayerRG8"])
def test_too_few_bytes_are_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"3 bytes, \d+ are needed"):
        convert(b"123", name, WIDTH, HEIGHT)


def test_what_cannot_be_converted_is_known_before() -> None:
    names = ("Mono8", "BayerBG12p", "RGB8", "Mono8p", "Mono10Packed", "Mono14p", "Coord3D_C16", "JPEG")
    assert [channels_of(name) for name in names] == [1, 3, 3, None, None, None, None, None]
