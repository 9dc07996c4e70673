"""CLIP backbones of open_clip: patch features for the few-shot half, and the space shared with text for the zero-shot half."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from open_clip.model import convert_weights_to_lp, resize_pos_embed
from open_clip.pretrained import download_pretrained
from PIL import Image
from torch import Tensor, nn

from model.errors import ModelError, WeightsError
from model.features import DTYPES, JointFeatures, LocalExtractor, PatchFeatures, average, check_pictures, join
from model.projection import Projection, manifest, read_projection
from model.spec import ModelSpec
from model.weights import StateDict, load_into, read_state

_NOT_OURS = (
    "custom_text",
    "multimodal_cfg",
    "hf_model_name",
    "hf_tokenizer_name",
    "timm_model_name",
    "attentional_pool",
    "no_causal_mask",
    "embed_cls",
    "pool_type",
    "proj_bias",
)
"""Marks of open_clip's configs whose towers are not CLIP's own: their features were never compared with anything."""

_POOL_POSITIONS = "visual.attnpool.positional_embedding"


def squash(pictures: Sequence[NDArray[np.uint8]], size: int) -> Tensor:
    """Each picture resized alone to S x S by Pillow (bicubic, antialiased): B x 3 x S x S, uint8.

    Pillow itself, as CLIP was trained and APRIL-GAN measured: torch's way with bytes (`to_square`) is up to two grey levels
    off, 0.03 after normalisation, three thousand times what we promise.
    """
    check_pictures(pictures)
    squares = torch.empty((len(pictures), 3, size, size), dtype=torch.uint8)
    for square, picture in zip(squares, pictures, strict=True):
        resized = np.array(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized)
        # Grey becomes three channels only after the resize, by copy_'s broadcast.
        square.copy_(pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels)
    return squares


class ClipExtractor(LocalExtractor):
    """A CLIP of open_clip, ViT or of the RN50 family, frozen; also a `TextEncoder`. Safe to use from several threads.

    projection: the linear layers of the zero-shot half; None where the spec names none. joint_width: of the text's space.
    Raises WeightsError for weights or linear layers that do not fit, ModelError for a backbone, layer or image size that
    open_clip does not have.
    """

    def __init__(self, spec: ModelSpec, device: str | torch.device = "cpu") -> None:
        config = _read_config(spec)
        state, weights_sha256 = _read_weights(spec)
        super().__init__(spec, device, weights_sha256)
        self._dtype = DTYPES[spec.precision]
        # Not open_clip.create_model: it takes the activation by name suffix or by the tag, only warns where the two differ
        # (issue 4: APRIL-GAN's layers want the difference), and unpickles by another way than ours.
        low = None if spec.precision == "fp32" else self._dtype
        network = open_clip.CLIP(**config, quick_gelu=spec.activation == "quick_gelu", cast_dtype=low)
        _resize_positions(state, network)
        load_into(network, state, source=f"model {spec.name}")
        network.eval().requires_grad_(False)
        if low is not None:
            # Only the image's half: text is encoded once for each object.
            convert_weights_to_lp(network.visual, low)
        self._network = network.to(self._device)
        self._vit = isinstance(network.visual, open_clip.transformer.VisionTransformer)
        self.joint_width: int = config["embed_dim"]
        self.widths = self._check_layers(config["vision_cfg"])
        self._tokenizer = open_clip.SimpleTokenizer(context_length=network.context_length)
        self.projection: Projection | None = None
        self.projection_sha256: str | None = None
        if spec.linear_layers is not None:
            projection, self.projection_sha256 = read_projection(
                Path(spec.linear_layers),
                self.widths,
                self.joint_width,
                stated=manifest(spec, self._weights_sha256),
                expected_sha256=spec.linear_layers_sha256,
            )
            self.projection = projection.to(self._device)

    @torch.inference_mode()
    def extract(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        squares = squash(pictures, self._spec.image_size)
        return join([self._features(*self.tokens(chunk)) for chunk in self._chunks(squares)])

    # Not inference mode, here and for text: gradients of linear layers flow past what these return.
    @torch.no_grad()
    def tokens(self, squares: Tensor) -> tuple[list[Tensor], Tensor]:
        """One pass: raw maps of the tapped layers, each B x C x h x w, and the image feature, B x D; float32, not normalised.

        squares: B x 3 x S x S, uint8. Tokens are the residual stream, before `ln_post`; linear layers are trained on them.
        """
        x = self._normalised(squares).to(self._dtype)
        # open_clip counts blocks from 0, and the stem of its ResNets as 0.
        indices = [layer - 1 if self._vit else layer for layer in self._spec.layers]
        out = self._network.visual.forward_intermediates(
            x, indices=indices, normalize_intermediates=False, output_fmt="NLC" if self._vit else "NCHW"
        )
        layers: list[Tensor] = [layer.float() for layer in out["image_intermediates"]]
        if self._vit:
            grid = self._network.visual.grid_size
            layers = [layer.mT.reshape(len(x), -1, *grid) for layer in layers]
        return layers, out["image_features"].float()

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """As open_clip's, over as many places as the longest prompt takes and not over all 77: attention is causal, so what
        comes after a sentence's end cannot change it, and 420 prompts of some 20 tokens take a quarter of the time.
        """
        network = self._network
        tokens = self._tokenizer(list(prompts)).to(self._device)
        places = int((tokens != 0).sum(1).max())
        tokens = tokens[:, :places]
        x = network.token_embedding(tokens) + network.positional_embedding[:places]
        x = network.ln_final(network.transformer(x, attn_mask=network.attn_mask[:places, :places]))
        # The end of text has the highest number.
        ends: Tensor = x[torch.arange(len(x), device=x.device), tokens.argmax(1)]
        vectors: Tensor = ends.float() @ network.text_projection.float()
        return vectors

    def _features(self, maps: list[Tensor], image: Tensor) -> PatchFeatures:
        grids = tuple((int(own.shape[2]), int(own.shape[3])) for own in maps)
        averaged = (average(own, self._spec.neighbourhood) for own in maps)
        # B x C x h x w to B x N x C.
        layers = tuple(F.normalize(own.flatten(2).mT, dim=-1).to(self._dtype).contiguous() for own in averaged)
        if self.projection is None:
            return PatchFeatures(layers, grids)
        mapped = self.projection([own.flatten(2).mT for own in maps])
        return PatchFeatures(layers, grids, JointFeatures(mapped, F.normalize(image, dim=-1)))

    def _check_layers(self, vision: Mapping[str, Any]) -> tuple[int, ...]:
        """Channels of each tapped layer."""
        depth = vision["layers"] if self._vit else 4
        if self._spec.layers[-1] > depth:
            raise ModelError(
                f"model {self._spec.name}: layers: expected 1 to {depth} (open_clip's {self._spec.backbone}), got "
                f"{self._spec.layers}. Choose lower ones"
            )
        width: int = vision["width"]
        return tuple(width if self._vit else width * 2 ** (layer + 1) for layer in self._spec.layers)


def _read_config(spec: ModelSpec) -> dict[str, Any]:
    """The towers' sizes, with the image size of the spec: open_clip's JSON config without what is ours to say."""
    if spec.backbone.endswith(".json"):
        try:
            config: Any = json.loads(Path(spec.backbone).read_text(encoding="utf-8"))
            config = config.get("model_cfg", config)
            vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
            config = {"embed_dim": int(config["embed_dim"]), **config, "vision_cfg": vision, "text_cfg": text}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{spec.backbone}: expected an open_clip model config (embed_dim, vision_cfg, text_cfg), got "
                f"{type(error).__name__}: {error}. Mend the file"
            ) from error
    else:
        config = open_clip.get_model_config(spec.backbone) if spec.backbone in open_clip.list_models() else None
        if config is None:
            near = difflib.get_close_matches(spec.backbone, open_clip.list_models(), n=3)
            raise ModelError(
                f"model {spec.name}: backbone: open_clip has no {spec.backbone!r}. Near: {', '.join(near) or 'none'}"
            )
    foreign = [mark for mark in _NOT_OURS if any(part.get(mark) for part in (config, config["vision_cfg"], config["text_cfg"]))]
    if foreign:
        raise ModelError(
            f"model {spec.name}: backbone {spec.backbone}: expected a plain CLIP (ViT or ResNet with CLIP's own text tower), "
            f"got {', '.join(foreign)}. Choose another one"
        )
    config.pop("quick_gelu", None)  # stated by the spec
    patch = config["vision_cfg"].get("patch_size") or 32  # ResNets: the stride of the last stage
    if spec.image_size % patch:
        near_size = max(round(spec.image_size / patch), 1) * patch
        raise ModelError(
            f"model {spec.name}: image_size: expected a multiple of {patch} px ({spec.backbone}), as parts of patches are "
            f"not seen, got {spec.image_size}. Choose {near_size}"
        )
    config["vision_cfg"]["image_size"] = spec.image_size
    return dict(config)


def _read_weights(spec: ModelSpec) -> tuple[StateDict, str]:
    path = _download(spec) if spec.weights.startswith("tag:") else Path(spec.weights)
    state, sha256 = read_state(path, spec.weights_sha256)
    # OpenAI's files carry these beside the weights, training with several GPUs adds the prefix.
    sizes = ("input_resolution", "context_length", "vocab_size", "attn_mask")
    return {name.removeprefix("module."): tensor for name, tensor in state.items() if name not in sizes}, sha256


def _download(spec: ModelSpec) -> Path:
    tag = spec.weights.removeprefix("tag:")
    found = open_clip.pretrained.get_pretrained_cfg(spec.backbone, tag)
    if not found:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(spec.backbone)) or "none"
        raise WeightsError(f"model {spec.name}: weights: open_clip knows no tag {tag!r} of {spec.backbone}. Known: {tags}")
    try:
        return Path(download_pretrained(found))
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"model {spec.name}: weights: expected {spec.weights} from its hub, got {type(error).__name__}: {error}. Connect "
            f"this machine to the network once, or fetch the file elsewhere and name its path as weights"
        ) from error


def _resize_positions(state: StateDict, network: nn.Module) -> None:
    """Position embeddings for the spec's image size, as open_clip does it: bicubic, antialiased, corners not aligned."""
    for name in ("visual.positional_embedding", _POOL_POSITIONS):
        if name in state:
            # OpenAI's are float16, which torch does not resize on a CPU.
            state[name] = state[name].float()
    try:
        resize_pos_embed(state, network)
    except RuntimeError:
        return  # not a square grid: load_into names the shape
    pooled = state.get(_POOL_POSITIONS)
    wanted = network.state_dict().get(_POOL_POSITIONS)
    if pooled is None or wanted is None or pooled.shape == wanted.shape or pooled.ndim != 2:
        return
    # open_clip leaves its ResNets' alone, and then cannot load them at another image size.
    old, new = (round((len(rows) - 1) ** 0.5) for rows in (pooled, wanted))
    if old**2 + 1 != len(pooled):
        return
    grid = pooled[1:].view(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    state[_POOL_POSITIONS] = torch.cat([pooled[:1], grid.permute(0, 2, 3, 1).reshape(new * new, -1)])
