"""Training APRIL-GAN's linear layers (arXiv 2305.17382, section 3.1, and the authors' train.py), in float32; CLIP is frozen."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim

from model.checkpoint import checkpoint_of, load_checkpoint, save_checkpoint
from model.clip import ClipExtractor
from model.dataset import Category
from model.detector import text_map
from model.errors import ModelError
from model.examples import Read, check_masks, draw_epoch, load_example
from model.losses import dice_loss, focal_loss
from model.projection import Projection, manifest, write_projection
from model.prompts import text_features
from model.spec import ModelSpec

LEARNING_RATE = 1e-3
BETAS = (0.5, 0.999)
TRAINING_VERSION = 1
"""Raised whenever this code gives other layers for the same settings, so that checkpoints made before are refused."""

_LOADERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class TrainingSettings:
    """epochs, batch, seed: each at least 1, 1, 0. mosaic: probability, 0 to 1, that a 2 x 2 mosaic takes a picture's place.

    Raises ModelError for others.
    """

    epochs: int
    mosaic: float
    batch: int = 8
    seed: int = 111

    def __post_init__(self) -> None:
        for fits, key, want in (
            (self.epochs >= 1, "epochs", "1 or more"),
            (0 <= self.mosaic <= 1, "mosaic", "0 to 1"),
            (self.batch >= 1, "batch", "1 or more"),
            (self.seed >= 0, "seed", "0 or more"),
        ):
            if not fits:
                raise ModelError(f"training: {key}: expected {want}, got {getattr(self, key)}. Mend it")


PUBLISHED_MVTEC = TrainingSettings(epochs=3, mosaic=0.2)
PUBLISHED_VISA = TrainingSettings(epochs=15, mosaic=0.0)


@dataclass(frozen=True)
class Step:
    """A step that is done. epoch, step: from 1, of `epochs`, `steps` (an epoch's). loss: of its batch, summed over layers."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


def train(
    extractor: ClipExtractor,
    categories: Sequence[Category],
    settings: TrainingSettings,
    out: Path,
    *,
    read: Read,
    report: Callable[[Step], None] = lambda _: None,
    checkpoint_s: float = 300.0,
) -> None:
    """Train new linear layers on the test pictures of an auxiliary data set, and write them as `out` (.safetensors).

    A checkpoint beside `out`, written after each epoch and every `checkpoint_s`, takes up a training that was cut off: on a
    CPU its result is the same to the bit (a GPU adds up in any order). It is removed when `out` is written.
    report: called after each step. Raises DatasetError for pictures without masks, CheckpointError for the checkpoint of
    other settings, ModelError for a loss that is not finite, OSError when the disk refuses, and what `read` raises.
    """
    check_masks(categories)
    run = _everything(extractor, categories, settings)
    projection = new_projection(extractor, settings.seed).to(extractor.device)
    adam = optim.Adam(projection.parameters(), lr=LEARNING_RATE, betas=BETAS)
    checkpoint = checkpoint_of(out)
    done = load_checkpoint(checkpoint, projection, adam, run=run)
    # By the folder's name as it stands ("metal_nut"), as published and as evaluating does.
    texts = {category.name: text_features(extractor.encode_text, category.name) for category in categories}
    size = extractor.spec.image_size
    steps = math.ceil(sum(len(category.test) for category in categories) / settings.batch)
    saved = time.monotonic()
    with ThreadPoolExecutor(_LOADERS) as pool:
        for epoch in range(done // steps, settings.epochs):
            examples = draw_epoch(categories, epoch, seed=settings.seed, mosaic=settings.mosaic)
            for step in range(done - epoch * steps, steps):
                batch = examples[step * settings.batch : (step + 1) * settings.batch]
                loaded = list(pool.map(lambda example: load_example(example, size, read), batch))
                squares, masks = (torch.stack(parts) for parts in zip(*loaded, strict=True))
                words = torch.stack([texts[example.category] for example in batch])
                adam.zero_grad()
                loss = batch_loss(extractor, projection, squares, masks, words)
                loss.backward()  # type: ignore[no-untyped-call]
                value = _finite(loss, projection, extractor.spec, f"epoch {epoch + 1}, step {step + 1}")
                adam.step()
                done += 1
                if step + 1 == steps or time.monotonic() - saved >= checkpoint_s:
                    save_checkpoint(checkpoint, projection, adam, run=run, steps=done)
                    saved = time.monotonic()
                report(Step(epoch + 1, settings.epochs, step + 1, steps, value))
    stated = manifest(extractor.spec, extractor.weights_sha256)
    write_projection(projection, out, {**stated, "training": {key: value for key, value in run.items() if key not in stated}})
    checkpoint.unlink(missing_ok=True)


def new_projection(extractor: ClipExtractor, seed: int) -> Projection:
    """Untrained layers, torch's own initialisation of Linear, drawn on the CPU: the same for every device."""
    # It takes no generator, so the process's own is borrowed and put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projection(extractor.widths, extractor.joint_width)


def batch_loss(extractor: ClipExtractor, projection: Projection, squares: Tensor, masks: Tensor, texts: Tensor) -> Tensor:
    """Focal and Dice loss of each layer's map, summed over the layers.

    squares: B x 3 x S x S, uint8. masks: B x S x S, float32, 0 or 1. texts: B x 2 x D, each picture's object.
    """
    maps, _ = extractor.tokens(squares)
    masks = masks.to(extractor.device)
    losses = []
    for mapped, own in zip(projection([own.flatten(2).mT for own in maps]), maps, strict=True):
        probabilities = text_map(mapped, texts, (own.shape[2], own.shape[3]), extractor.spec.image_size)
        losses += [focal_loss(probabilities, masks), dice_loss(probabilities[:, 1], masks)]
    return torch.stack(losses).sum()


def _finite(loss: Tensor, projection: Projection, spec: ModelSpec, when: str) -> float:
    """The loss; ModelError unless it and its gradients are finite, else NaN would be written as layers."""
    value = float(loss.detach())
    gradients = [parameter.grad for parameter in projection.parameters() if parameter.grad is not None]
    if not math.isfinite(value) or not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise ModelError(
            f"training, {when}: expected a finite loss and gradient, got a loss of {value} (model {spec.name}, precision "
            f"{spec.precision}). Check the backbone's weights, or train with precision fp32: the layers then serve the others too"
        )
    return value


def _everything(extractor: ClipExtractor, categories: Sequence[Category], settings: TrainingSettings) -> dict[str, Any]:
    """What the trained layers depend on, as plain JSON values; of the pictures the names, as reading them all takes minutes."""
    spec = extractor.spec
    names = [
        [category.name, sample.picture.relative_to(category.root).as_posix(), sample.defect]
        for category in categories
        for sample in category.test
    ]
    return {
        **manifest(spec, extractor.weights_sha256),
        "training_version": TRAINING_VERSION,
        "image_size": spec.image_size,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "precision": spec.precision,
        "categories": [category.name for category in categories],
        "pictures": len(names),
        "pictures_sha256": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
        **asdict(settings),
        "learning_rate": LEARNING_RATE,
        "betas": list(BETAS),
    }
