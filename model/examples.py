"""What the linear layers learn from: test pictures with their masks, now and then four of one object as a mosaic."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.clip import squash
from model.dataset import Category, Sample
from model.errors import DatasetError

Read = Callable[[Path], NDArray[np.uint8]]
"""A picture file to pixels: H x W, or H x W x 3 (RGB)."""


@dataclass(frozen=True)
class Example:
    """What is shown as one picture: one sample, or four of one category as a 2 x 2 mosaic, row by row."""

    category: str
    samples: tuple[Sample, ...]


def check_masks(categories: Sequence[Category]) -> None:
    """DatasetError unless there are defective pictures to learn from, and each has a mask."""
    defective = [sample for category in categories for sample in category.test if sample.defect is not None]
    bare = [sample for sample in defective if sample.mask is None]
    if bare or not defective:
        got = f"{len(bare)} of {len(defective)} without ({bare[0].picture} first)" if bare else "good pictures only"
        raise DatasetError(
            f"training: expected defective test pictures, each with a mask of its defect, got {got}. Add the masks "
            f"(ground_truth/<defect>/<picture>_mask.png in MVTec AD's layout), or choose --categories that have them"
        )


def draw_epoch(categories: Sequence[Category], epoch: int, *, seed: int, mosaic: float) -> list[Example]:
    """Every test picture once, in random order, each replaced by a mosaic of its category with probability `mosaic`.

    As in the authors' dataset.py the four come with repetition, first the kind (good, or of defect), then the picture, so
    that rare kinds are seen. Same seed and epoch (from 0), same examples: nothing random has to be kept to resume.
    """
    random = np.random.default_rng((seed, epoch))
    everything = [(category, sample) for category in categories for sample in category.test]
    kinds = {category.name: _by_kind(category) for category in categories}
    examples = []
    for place in random.permutation(len(everything)):
        category, sample = everything[place]
        samples: tuple[Sample, ...] = (sample,)
        if random.random() < mosaic:
            own = kinds[category.name]
            four = [own[random.integers(len(own))] for _ in range(4)]
            samples = tuple(kind[random.integers(len(kind))] for kind in four)
        examples.append(Example(category.name, samples))
    return examples


def load_example(example: Example, size: int, read: Read) -> tuple[Tensor, Tensor]:
    """The picture, 3 x S x S, uint8, and its mask, S x S, float32, 0 or 1 (abnormal).

    Raises DatasetError for a mask of another size than its picture, and what `read` raises.
    """
    parts = [_load(sample, read) for sample in example.samples]
    picture, mask = parts[0] if len(parts) == 1 else mosaic_of(parts)
    # As the authors': Pillow's bilinear, which averages when it shrinks, then cut at a half.
    resized = np.array(Image.fromarray(mask.astype(np.uint8) * 255).resize((size, size), Image.Resampling.BILINEAR))
    return squash([picture], size)[0], torch.from_numpy((resized > 127).astype(np.float32))


Labelled = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""A picture, H x W or H x W x 3, and its mask, H x W."""


def mosaic_of(parts: Sequence[Labelled]) -> Labelled:
    """Four pictures with their masks as one of 2 x 2, row by row: 2H x 2W x 3, 2H x 2W; H, W of the first.

    The others are resized to it, which changes nothing in data sets whose pictures of an object are of one size.
    """
    height, width = parts[0][1].shape
    pictures, masks = [], []
    for picture, mask in parts:
        colour = Image.fromarray(picture).convert("RGB")
        pictures.append(np.array(colour.resize((width, height), Image.Resampling.BICUBIC)))
        masks.append(np.array(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)))
    first, second = (np.concatenate(pictures[row : row + 2], axis=1) for row in (0, 2))
    above, below = (np.concatenate(masks[row : row + 2], axis=1) for row in (0, 2))
    return np.concatenate((first, second)), np.concatenate((above, below))


def _load(sample: Sample, read: Read) -> Labelled:
    picture = read(sample.picture)
    if sample.mask is None:
        return picture, np.zeros(picture.shape[:2], np.bool_)
    mask = read(sample.mask)
    if mask.shape[:2] != picture.shape[:2]:
        (height, width), (own_height, own_width) = picture.shape[:2], mask.shape[:2]
        raise DatasetError(
            f"{sample.mask}: expected the size of its picture, {width} x {height} px, got {own_width} x {own_height}. "
            f"Make the mask again"
        )
    return picture, (mask if mask.ndim == 2 else mask.max(2)) > 0


def _by_kind(category: Category) -> list[list[Sample]]:
    kinds: dict[str | None, list[Sample]] = defaultdict(list)
    for sample in category.test:
        kinds[sample.defect].append(sample)
    return list(kinds.values())
