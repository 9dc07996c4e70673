"""The tiny CLIP of the golden data: weights drawn by the recipe of the data's README, and its files as a user has them."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor

from model.spec import ModelSpec

DATA = Path(__file__).parent / "data"
CONFIG = DATA / "tiny-14-56.json"
LAYERS = (3, 6, 9, 12)


def draw(name: str, shape: tuple[int, ...], prefix: str) -> Tensor:
    if name == "logit_scale":
        return torch.tensor(np.log(100), dtype=torch.float32)
    whole = prefix + name
    x = np.random.RandomState(zlib.crc32(whole.encode()) & 0x7FFFFFFF).standard_normal(shape)
    if "ln_" in whole and whole.endswith("weight"):
        x = 1 + 0.1 * x
    elif whole.endswith("bias") or len(shape) < 2:
        x = 0.1 * x
    elif "positional_embedding" in whole or "token_embedding" in whole:
        x = 0.5 * x
    else:
        fan_in = np.prod(shape[1:]) if whole.endswith("weight") or "in_proj" in whole else shape[0]
        x = x * 1.5 / np.sqrt(fan_in)
    return torch.tensor(x, dtype=torch.float32)


def clip_state(config: Path = CONFIG) -> dict[str, Tensor]:
    """The state dict at the config's own image size."""
    own = open_clip.CLIP(**json.loads(config.read_text())).state_dict()
    floating = {name: tensor for name, tensor in own.items() if tensor.is_floating_point() and name != "attn_mask"}
    return {name: draw(name, tuple(tensor.shape), "clip.") for name, tensor in floating.items()}


def linear_state(widths: tuple[int, ...] = (32, 32, 32, 32), joint: int = 24) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {}
    for number, width in enumerate(widths):
        shapes[f"fc.{number}.weight"], shapes[f"fc.{number}.bias"] = (joint, width), (joint,)
    return {name: draw(name, shape, "linear.") for name, shape in shapes.items()}


def tiny_spec(folder: Path, state: Mapping[str, Tensor], linear: Mapping[str, Tensor] | None) -> ModelSpec:
    """The preset of that model at 112 px, its two files written into the folder in the authors' formats."""
    weights, layers = folder / "clip.pt", folder / "linear.pth"
    torch.save({"state_dict": dict(state)}, weights)
    if linear is not None:
        torch.save({"trainable_linearlayer": dict(linear)}, layers)
    return ModelSpec(
        name="tiny",
        family="open_clip",
        backbone=str(CONFIG),
        weights=str(weights),
        layers=LAYERS,
        image_size=112,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        neighbourhood=1,
        activation="gelu",
        linear_layers=None if linear is None else str(layers),
    )


def write_preset(spec: ModelSpec, path: Path) -> Path:
    """The spec as a preset file. JSON's texts, numbers and lists are TOML's."""
    given = {key: value for key, value in asdict(spec).items() if value is not None}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))
    return path
