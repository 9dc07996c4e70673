"""Pictures to patch features: the one way every picture goes, to register, calibrate, inspect and evaluate."""

import copy
import difflib
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import timm
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.errors import ConversionError, ModelError
from model.spec import ModelSpec
from model.steps import Steps
from model.weights import load_into, load_weights

log = logging.getLogger(__name__)

Runtime = Literal["auto", "torch", "openvino"]

CPU_CHUNK = 4
"""Pictures per pass on a CPU: 8 leave the cache (Lite0 at 256 px: 12.8 ms each against 9.9 with 4)."""


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of patch features, by `ModelSpec.precision`."""


@dataclass(frozen=True)
class JointFeatures:
    """B pictures in the space that CLIP shares with text, D wide, on the grids of their patch features.

    layers: each B x N x D, float32, every patch mapped by its linear layer, then L2-normalised.
    image: B x D, float32, the whole picture's own feature, L2-normalised.
    """

    layers: tuple[Tensor, ...]
    image: Tensor

    def select(self, at: slice | Tensor) -> "JointFeatures":
        return JointFeatures(tuple(layer[at] for layer in self.layers), self.image[at])

    def to(self, device: str | torch.device) -> "JointFeatures":
        return JointFeatures(tuple(layer.to(device) for layer in self.layers), self.image.to(device))


@dataclass(frozen=True)
class PatchFeatures:
    """Patch features of B pictures, one tensor for each tapped layer.

    layers: each B x N x C, every patch L2-normalised in float32 and then rounded to the spec's precision (`DTYPES`), patches
        in row order of the grid.
    grids: (height, width) in patches of each layer; N = height * width.
    joint: the same pictures as text sees them; None where the backbone knows no text or its linear layers are absent.
    """

    layers: tuple[Tensor, ...]
    grids: tuple[tuple[int, int], ...]
    joint: JointFeatures | None = None

    def __len__(self) -> int:
        return len(self.layers[0])

    def select(self, index: slice | Sequence[int]) -> "PatchFeatures":
        """The features of some of the pictures, in the order of `index`."""
        at = index if isinstance(index, slice) else torch.tensor(index, device=self.layers[0].device, dtype=torch.long)
        joint = None if self.joint is None else self.joint.select(at)
        return PatchFeatures(tuple(layer[at] for layer in self.layers), self.grids, joint)

    def to(self, device: str | torch.device) -> "PatchFeatures":
        """The same features in that device's memory."""
        joint = None if self.joint is None else self.joint.to(device)
        return PatchFeatures(tuple(layer.to(device) for layer in self.layers), self.grids, joint)


def join(parts: Sequence[PatchFeatures]) -> PatchFeatures:
    """The features of several calls as if they came from one."""
    if len(parts) == 1:
        return parts[0]
    joints = [part.joint for part in parts if part.joint is not None]
    joint = None
    if joints:
        joint = JointFeatures(_join([own.layers for own in joints]), torch.cat([own.image for own in joints]))
    return PatchFeatures(_join([part.layers for part in parts]), parts[0].grids, joint)


def joining(parts: Sequence[PatchFeatures], device: str | torch.device) -> Steps[PatchFeatures]:
    """`join`, in short steps, into the memory of a device."""
    count = sum(len(part) for part in parts)

    def put(pieces: Sequence[Tensor]) -> Steps[Tensor]:
        whole = torch.empty((count, *pieces[0].shape[1:]), dtype=pieces[0].dtype, device=device)
        start = 0
        for piece in pieces:
            whole[start : start + len(piece)] = piece
            start += len(piece)
            yield start, count
        return whole

    layers, joints = [], []
    for own in zip(*(part.layers for part in parts), strict=True):
        layers.append((yield from put(own)))
    told = [part.joint for part in parts if part.joint is not None]
    if not told:
        return PatchFeatures(tuple(layers), parts[0].grids)
    for own in zip(*(joint.layers for joint in told), strict=True):
        joints.append((yield from put(own)))
    image = yield from put([joint.image for joint in told])
    return PatchFeatures(tuple(layers), parts[0].grids, JointFeatures(tuple(joints), image))


def _join(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(layers) for layers in zip(*parts, strict=True))


class FeatureExtractor(Protocol):
    """Images in, patch features out, batched, with no knowledge of recipes: may one day run on another machine."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def weights_sha256(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def callers(self) -> int:
        """How many threads may call at once without waiting for one another."""
        ...

    def extract(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        """Features of one or more pictures, H x W or H x W x 3 (RGB), uint8, each of any size.

        A picture's features do not depend (beyond 1e-5) on what else is in the call. ModelError for another shape.
        """
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """What a feature extractor that knows text has besides.

    projection_sha256: of the file of linear layers (hex); None without, and then there is no zero-shot.
    """

    projection_sha256: str | None

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """B x D, float32, on the device, not normalised, in the space of `JointFeatures`."""
        ...


MIN_SIDE = 16
"""px; a smaller picture is less than a patch of most backbones, blown up it would be judged as if it were a part."""


def check_pictures(pictures: Sequence[NDArray[np.uint8]]) -> None:
    """ModelError unless there is at least one, and each is H x W or H x W x 3 (RGB), uint8, MIN_SIDE or more on each side."""
    if not pictures:
        raise ModelError("extract: expected at least one picture, got none")
    for picture in pictures:
        rgb = picture.ndim == 3 and picture.shape[2] == 3
        if picture.dtype != np.uint8 or not (rgb or picture.ndim == 2) or picture.size == 0:
            raise ModelError(
                f"extract: expected a picture of uint8, H x W or H x W x 3 (RGB), got {picture.dtype} {picture.shape}. "
                f"Convert it first"
            )
        if min(picture.shape[:2]) < MIN_SIDE:
            raise ModelError(
                f"extract: expected a picture of at least {MIN_SIDE} x {MIN_SIDE} px, got {picture.shape[1]} x "
                f"{picture.shape[0]}: smaller than a patch. Mend the camera's size or the recipe's region"
            )


def to_square(pictures: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
    """Each picture resized alone to S x S, bicubic and antialiased as PIL does it: B x 3 x S x S, uint8, channels last.

    On the CPU, as torch does this to bytes only there; bytes keep it within two grey levels of PIL's result.
    """
    check_pictures(pictures)
    squares = torch.empty((len(pictures), 3, size, size), dtype=torch.uint8).to(memory_format=torch.channels_last)
    for square, picture in zip(squares, pictures, strict=True):
        rgb = picture.ndim == 3
        # A copy of read-only memory (a view of a camera's ring, say): torch warns of it, though we never write.
        plain = np.require(picture, requirements=["C", "W"])
        pixels = torch.from_numpy(plain).permute(2, 0, 1) if rgb else torch.from_numpy(plain)[None]
        # Grey becomes three channels only after the resize, by copy_'s broadcast.
        square.copy_(F.interpolate(pixels[None], size=(size, size), mode="bicubic", antialias=True)[0])
    return squares


class LocalExtractor:
    """What the extractors of this machine share: their description, and how squares of bytes become a network's input."""

    def __init__(self, spec: ModelSpec, device: str | torch.device, weights_sha256: str, callers: int = 1) -> None:
        self._spec = spec
        self._callers = callers
        self._device = torch.device(device)
        self._weights_sha256 = weights_sha256
        self._scale, self._shift = (part.to(self._device) for part in _normalisation(spec))

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def weights_sha256(self) -> str:
        return self._weights_sha256

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def callers(self) -> int:
        return self._callers

    def _chunks(self, squares: Tensor) -> Sequence[Tensor]:
        """B x 3 x S x S in parts for one pass each."""
        return torch.split(squares, CPU_CHUNK) if self._device.type == "cpu" else (squares,)

    def _normalised(self, squares: Tensor) -> Tensor:
        """Bytes B x 3 x S x S to float32 on the device."""
        return squares.to(self._device).float().mul_(self._scale).add_(self._shift)


class TimmExtractor(LocalExtractor):
    """A timm backbone with local weights, frozen, in float32. Safe to use from several threads.

    encoder: the network as a whole, bytes in and normalised patch features out: what other runtimes convert.
    Raises WeightsError for weights that do not fit, ModelError for a backbone or layer that timm does not have.
    """

    def __init__(self, spec: ModelSpec, device: str | torch.device = "cpu") -> None:
        state, weights_sha256 = load_weights(spec)
        super().__init__(spec, device, weights_sha256)
        network = _create_backbone(spec)
        load_into(network, state, optional=network.default_cfg.get("classifier"), source=f"model {spec.name}")
        # Transformers in timm resample their position embeddings when told the new size after loading.
        if spec.image_size != network.default_cfg["input_size"][-1] and hasattr(network, "set_input_size"):
            network.set_input_size(img_size=(spec.image_size, spec.image_size))
        try:
            network.prune_intermediate_layers(list(spec.layers))
        except (AssertionError, IndexError) as error:
            raise ModelError(
                f"model {spec.name}: layers {spec.layers}: {spec.backbone} has no such level. Choose lower ones"
            ) from error
        network.eval().requires_grad_(False)
        network = _fold_norms(network, spec).to(self._device, memory_format=torch.channels_last)
        self.encoder = TimmEncoder(network, spec).eval().to(self._device)

    @torch.inference_mode()
    def extract(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        squares = to_square(pictures, self._spec.image_size).permute(0, 2, 3, 1)
        passes = [self.encoder(chunk.to(self._device)) for chunk in self._chunks(squares)]
        grids = tuple((int(layer.shape[1]), int(layer.shape[2])) for layer in passes[0])
        layers = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*passes, strict=True))
        return PatchFeatures(tuple(layer.flatten(1, 2).contiguous() for layer in layers), grids)


class TimmEncoder(nn.Module):
    """Bytes B x S x S x 3 to each tapped layer's features, B x h x w x C, float32, averaged and L2-normalised."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = network
        self._spec = spec
        scale, shift = _normalisation(spec)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, squares: Tensor) -> tuple[Tensor, ...]:
        x = squares.permute(0, 3, 1, 2).float().mul_(self.scale).add_(self.shift)
        layers = [average(layer, self._spec.neighbourhood) for layer in _tap(self.network, x, self._spec)]
        if self._spec.joined is not None:
            return (join_layers(layers, self._spec.joined).permute(0, 2, 3, 1),)
        return tuple(F.normalize(layer.permute(0, 2, 3, 1), dim=-1) for layer in layers)


def average(layer: Tensor, side: int) -> Tensor:
    """B x C x h x w averaged over windows of side x side, at the borders over what there is of them."""
    if side == 1:
        return layer
    return F.avg_pool2d(layer, side, stride=1, padding=side // 2, count_include_pad=False)


def join_layers(layers: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """One L2-normalised feature for each patch of the first layer's grid: B x C x h x w each, to B x (sum of C) x h x w.

    See `ModelSpec.joined`. Others are resampled bilinear to the first one's grid.
    """
    grid, total = layers[0].shape[2:], sum(weights)
    parts = []
    for layer, weight in zip(layers, weights, strict=True):
        same = layer if layer.shape[2:] == grid else F.interpolate(layer, size=grid, mode="bilinear", align_corners=False)
        parts.append(F.normalize(same, dim=1) * (weight / total) ** 0.5)
    return torch.cat(parts, dim=1)


def create_extractor(
    spec: ModelSpec,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    cache: Path | None = None,
    runtime: Runtime = "auto",
    callers: int = 1,
) -> FeatureExtractor:
    """The extractor for a spec's family and device.

    threads: CPU threads, torch's for the whole process; None: as is. cache: folder that keeps converted encoders from one
    start to the next; None: convert each time. runtime: `auto` is OpenVINO for timm on a CPU, with a warning in the log
    where it cannot run the backbone, and torch for all else. callers: threads that are to call at once, each with its share
    of `threads`: on a CPU two pictures, a core each, are quicker than one after the other on both. OpenVINO's alone can; the
    extractor's `callers` says what it became.
    Raises ModelError (ConversionError among them) where the runtime asked for cannot run this model on this device.
    """
    kind = torch.device(device)
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ModelError(f"device {device}: expected that CUDA device, got {found} of them. Check driver and GPU, or use cpu")
    fits = spec.family == "timm" and kind.type == "cpu"
    if runtime == "openvino" and not fits:
        raise ModelError(
            f"model {spec.name}: runtime openvino: expected a timm model on device cpu, got {spec.family} on {device}. "
            f"Choose runtime auto or torch"
        )
    if threads is not None:
        torch.set_num_threads(threads)
    if spec.family == "open_clip":
        # Here, as open_clip takes a second to import and needs nothing that the default preset does.
        from model.clip import ClipExtractor

        return ClipExtractor(spec, device)
    if fits and runtime != "torch":
        from model.openvino import OpenVinoExtractor

        try:
            extractor = OpenVinoExtractor(spec, threads, cache, callers=callers)
        except ConversionError as error:
            if runtime == "openvino":
                raise
            log.warning("model %s: runs in torch, slower than OpenVINO would: %s", spec.name, error)
        else:
            if callers > 1:
                torch.set_num_threads(max(1, torch.get_num_threads() // callers))
            return extractor
    return TimmExtractor(spec, device)


def _normalisation(spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Scale and shift, 1 x 3 x 1 x 1, that take bytes to what the network wants: (x / 255 - mean) / std at once."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return 1 / (255 * std), -mean / std


def _create_backbone(spec: ModelSpec) -> Any:
    if not timm.is_model(spec.backbone):
        near = difflib.get_close_matches(spec.backbone, timm.list_models(), n=3)
        raise ModelError(f"model {spec.name}: backbone: timm has no {spec.backbone!r}. Near: {', '.join(near) or 'none'}")
    network = timm.create_model(spec.backbone, pretrained=False)
    if not hasattr(network, "forward_intermediates"):
        raise ModelError(f"model {spec.name}: backbone {spec.backbone}: timm cannot tap its layers. Choose another one")
    return network


def _tap(network: Any, x: Tensor, spec: ModelSpec) -> list[Tensor]:
    # Not timm's features_only: EfficientNet's runs every stage, tapped or not.
    layers: list[Tensor] = network.forward_intermediates(
        x, indices=list(spec.layers), stop_early=True, intermediates_only=True, output_fmt="NCHW"
    )
    return layers


@torch.no_grad()
def _fold_norms(network: Any, spec: ModelSpec) -> Any:
    """Batch norms folded into the convolution before them: a third less time on a CPU, the same features.

    That neighbours in the module tree follow one another in the forward pass is a custom, not a rule, so a network
    whose features change is left as it was.
    """
    folded = copy.deepcopy(network)
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                # timm's BatchNormAct2d carries the activation.
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
    size = spec.image_size
    x = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    pairs = zip(_tap(network, x, spec), _tap(folded, x, spec), strict=True)
    equal = all(torch.allclose(F.normalize(a, dim=1), F.normalize(b, dim=1), atol=1e-4) for a, b in pairs)
    return folded if equal else network
