"""Parts drawn by the tests: a grey disc with holes on a dark belt, good or with a scratch."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model.detector import Judgement

SIZE = 256


def draw_part(seed: int, *, scratched: bool = False) -> NDArray[np.uint8]:
    """256 x 256 grey. Same seed, same picture; place, light and noise vary a little, as on a line."""
    random = np.random.default_rng(seed)
    picture = np.full((SIZE, SIZE), 40, np.uint8)
    x, y = 128 + int(random.integers(-2, 3)), 128 + int(random.integers(-2, 3))
    cv2.circle(picture, (x, y), 90, 170, -1, cv2.LINE_AA)
    for angle in np.linspace(0, 2 * np.pi, 6, endpoint=False):
        hole = (x + int(55 * np.cos(angle)), y + int(55 * np.sin(angle)))
        cv2.circle(picture, hole, 12, 40, -1, cv2.LINE_AA)
    if scratched:
        cv2.line(picture, (x - 35, y - 20), (x + 25, y + 30), 245, 5, cv2.LINE_AA)
    noisy = picture * random.uniform(0.97, 1.03) + random.normal(0, 2, picture.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """As a file's content."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def write_parts(folder: Path, seeds: range, *, scratched: bool = False, start: int = 0) -> list[Path]:
    """Pictures in name order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, seed in enumerate(seeds, start):
        path = folder / f"{index:04d}.png"
        assert cv2.imwrite(str(path), draw_part(seed, scratched=scratched))
        paths.append(path)
    return paths


def judgement(maps: NDArray[np.float32]) -> Judgement:
    """What a detector says that gives these maps, by shots alone."""
    none = np.full(len(maps), np.nan, np.float32)
    return Judgement(maps, maps.max(axis=(1, 2)), none, np.zeros(len(maps), np.float32))
