"""How a picture looks beside the other shots of its recipe: what a person would notice before teaching from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ENOUGH = 3
"""Other shots needed to know what is usual."""
BLURRED = 0.5
"""A picture is blurred with under this share of the least sharp other shot's variance of the Laplacian: good parts of a line
differ by some tens of percent, a Gaussian blur of one pixel takes three quarters or more."""
OVEREXPOSED = 0.02
"""A picture is over-exposed with so much more of its pixels saturated than the most saturated other shot."""
SATURATED = 250
"""Of 255, in any channel."""


@dataclass(frozen=True)
class Look:
    """What is compared. sharpness: variance of the Laplacian of the grey picture. saturated: share of pixels, 0 to 1."""

    width: int
    height: int
    channels: int
    sharpness: float
    saturated: float


def look_at(pixels: NDArray[np.uint8]) -> Look:
    """The look of a picture, H x W or H x W x 3."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    brightest = pixels if pixels.ndim == 2 else pixels.max(2)
    sharpness = float(cv2.Laplacian(grey, cv2.CV_32F).var())
    saturated = float(np.count_nonzero(brightest >= SATURATED) / brightest.size)
    return Look(pixels.shape[1], pixels.shape[0], 1 if pixels.ndim == 2 else 3, sharpness, saturated)


def warnings(look: Look, others: Sequence[Look]) -> tuple[str, ...]:
    """What a person should know before the picture is a shot among `others`."""
    if not others:
        return ()
    found = []
    if all((look.width, look.height) != (other.width, other.height) for other in others):
        first = others[0]
        found.append(f"size: {look.width} x {look.height} px, the other shots have {first.width} x {first.height}")
    if all(look.channels != other.channels for other in others):
        kinds = {1: "grey", 3: "colour"}
        found.append(f"channels: a {kinds[look.channels]} picture, the other shots are {kinds[others[0].channels]}")
    if len(others) >= ENOUGH:
        least = min(other.sharpness for other in others)
        if look.sharpness < BLURRED * least:
            found.append(f"blurred: sharpness {look.sharpness:.0f}, the other shots have {least:.0f} or more")
        most = max(other.saturated for other in others)
        if look.saturated > most + OVEREXPOSED:
            found.append(f"over-exposed: {look.saturated:.1%} of it is saturated, of the other shots {most:.1%} at most")
    return tuple(found)
