"""The trained part of APRIL-GAN's zero-shot half: one linear layer per tapped layer, from patch tokens to the text's space."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from safetensors import SafetensorError
from torch import Tensor, nn

from model.errors import WeightsError
from model.files import write_whole
from model.spec import ModelSpec
from model.weights import read_state

LINEAR_LAYERS_FORMAT = 1


class Projection(nn.Module):
    """Linear layers with bias, `fc.0`, `fc.1` ... as in the authors' files: B x N x C to B x N x D, L2-normalised, each."""

    def __init__(self, widths: Sequence[int], joint: int) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(width, joint) for width in widths)

    def forward(self, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(F.normalize(layer(own), dim=-1) for layer, own in zip(self.fc, tokens, strict=True))


def manifest(spec: ModelSpec, weights_sha256: str) -> dict[str, Any]:
    """What linear layers depend on, stated in files of ours: other image sizes and precisions may share them."""
    return {
        "linear_layers_format": LINEAR_LAYERS_FORMAT,
        "backbone": spec.backbone,
        "weights_sha256": weights_sha256,
        "activation": spec.activation,
        "layers": list(spec.layers),
    }


def write_projection(projection: Projection, path: Path, stated: Mapping[str, Any]) -> None:
    """Write a .safetensors file, whole or not at all, its `manifest` in the file's own metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in projection.state_dict().items()}
    write_whole(path, safetensors.torch.save(tensors, {"manifest": json.dumps(stated)}))


def read_projection(
    path: Path,
    widths: Sequence[int],
    joint: int,
    *,
    stated: Mapping[str, Any] | None = None,
    expected_sha256: str | None = None,
) -> tuple[Projection, str]:
    """The layers of a file, the authors' .pth or ours, frozen, and its sha256 (hex).

    widths: channels of each tapped layer; joint: width of the text's space. stated: what a file's manifest must say
    (`manifest`); the authors' files say nothing. Raises WeightsError when anything differs.
    """
    state, sha256 = read_state(path, expected_sha256, inside="trainable_linearlayer")
    mend = "Choose the linear layers trained for this model, or mend the preset's backbone and layers"
    for key, want in (stated or {}).items():
        got = _manifest_of(path).get(key, want)
        if got != want:
            raise WeightsError(f"{path}: linear layers: expected those trained with {key} {want}, got {got}. {mend}")
    expected: dict[str, tuple[int, ...]] = {}
    for number, width in enumerate(widths):
        expected[f"fc.{number}.weight"], expected[f"fc.{number}.bias"] = (joint, width), (joint,)
    if state.keys() != expected.keys():
        raise WeightsError(
            f"{path}: linear layers: expected {len(widths)} layers ({', '.join(expected)}), got {len(state)} tensors "
            f"({', '.join(sorted(state)[:8])}). {mend}"
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise WeightsError(
                f"{path}: linear layers: {name}: expected {shape}, got {tuple(state[name].shape)}: made for a backbone of "
                f"other widths. {mend}"
            )
    projection = Projection(widths, joint)
    projection.load_state_dict(state)
    return projection.eval().requires_grad_(False), sha256


def _manifest_of(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            read = json.loads((file.metadata() or {}).get("manifest", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path}: linear layers: their manifest cannot be read: {error}. Train or fetch them again") from error
    if not isinstance(read, dict):
        raise WeightsError(f"{path}: linear layers: expected a manifest, got {type(read).__name__}. Train or fetch them again")
    return read
