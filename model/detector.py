"""From pictures to anomaly maps and scores: one code path for registering, calibrating, inspecting and evaluating."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from torch import Tensor

from model.bank import Bank, build_bank, nearest
from model.errors import BankError, ModelError
from model.features import FeatureExtractor, PatchFeatures


class Detector:
    """A feature extractor and the few-shot rule over it. Holds no recipe: each frame comes with its own bank."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self.fingerprint: dict[str, Any] = extractor.spec.fingerprint(extractor.weights_sha256)

    def encode(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        """Features of pictures, cropped to their regions of interest: H x W or H x W x 3 (RGB), uint8, of any sizes."""
        return self.extractor.extract(pictures)

    def build(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        shots: Sequence[str],
        region: tuple[int, int, int, int] | None = None,
    ) -> Bank:
        """The bank of reference shots: `shots` is each picture's sha256 (hex), in that order. Raises ShotsError."""
        return build_bank(self.encode(pictures), fingerprint=self.fingerprint, shots=shots, region=region)

    @torch.inference_mode()
    def maps(self, features: PatchFeatures, banks: Sequence[Bank]) -> Tensor:
        """Anomaly maps, B x S x S, float32, 0 to 2 per tapped layer, on the device; `banks` has one for each picture.

        As APRIL-GAN (arXiv 2305.17382): per layer the least `1 - cosine` to the bank, bilinear with aligned corners to
        S x S, summed over the layers. Pictures that share a bank are searched together. BankError if a bank is another
        model's.
        """
        if len(banks) != len(features):
            raise ModelError(f"maps: expected one bank for each of {len(features)} pictures, got {len(banks)}")
        sharing: dict[int, list[int]] = {}
        for number, bank in enumerate(banks):
            sharing.setdefault(id(bank), []).append(number)
        size = self.extractor.spec.image_size
        maps = torch.empty((len(banks), size, size), device=features.layers[0].device)
        for numbers in sharing.values():
            bank = banks[numbers[0]]
            self._check(bank)
            own = features if len(sharing) == 1 else features.select(numbers)
            total = torch.zeros((len(numbers), 1, size, size), device=maps.device)
            for queries, rows, grid in zip(own.layers, bank.layers, own.grids, strict=True):
                distances = nearest(queries, rows).view(-1, 1, *grid)
                total += F.interpolate(distances, size=(size, size), mode="bilinear", align_corners=True)
            maps[numbers] = total[:, 0]
        return maps

    def judge(self, pictures: Sequence[NDArray[np.uint8]], banks: Sequence[Bank]) -> NDArray[np.float32]:
        """Anomaly maps of pictures, each against its own bank, in the host's memory: B x S x S, float32.

        Raises ModelError when a map is not finite: such a score is "not over the threshold", a pass nobody judged.
        """
        maps: NDArray[np.float32] = self.maps(self.encode(pictures), banks).cpu().numpy()
        broken = np.flatnonzero(~np.isfinite(maps.max(axis=(1, 2))))
        if broken.size:
            raise ModelError(
                f"model {self.extractor.spec.name}: expected finite anomaly maps, got NaN or infinity for pictures "
                f"{broken.tolist()} of {len(banks)}. Check the device's memory and the weights"
            )
        return maps

    def _check(self, bank: Bank) -> None:
        if bank.manifest.fingerprint != self.fingerprint:
            raise BankError(
                f"bank {bank.name}: expected one made by model {self.fingerprint}, got {bank.manifest.fingerprint}."
                f" Build the bank again from its shots"
            )


def score(maps: Tensor) -> Tensor:
    """The image score: the largest value of each map. B x S x S to B."""
    return maps.flatten(1).amax(1)
