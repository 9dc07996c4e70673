"""From pictures to anomaly maps and scores: one code path for registering, calibrating, inspecting and evaluating."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from torch import Tensor

from model.bank import Bank, build_bank, nearest
from model.errors import BankError, ModelError
from model.features import FeatureExtractor, JointFeatures, PatchFeatures, TextEncoder
from model.scoring import background, score
from model.texts import Texts

Mode = Literal["zero_shot", "few_shot", "both"]


@dataclass(frozen=True, eq=False)
class Reference:
    """What one picture is judged by: a bank (few-shot), text vectors (zero-shot, 2 x D, see `text_features`), or both.

    `Detector.reference` makes one by mode and object name.
    image_weight: what the image probability adds to every pixel of the map; 0 without text. background_limit: the most of a
    map's own background that is taken off it, for a spec with `background`. Both come from `model.calibration`.
    """

    bank: Bank | None = None
    text: Tensor | None = None
    image_weight: float = 0.0
    background_limit: float = 0.0

    def __post_init__(self) -> None:
        if self.bank is None and self.text is None:
            raise ModelError("reference: expected a bank, text vectors or both, got neither. Register shots or name the object")
        if self.image_weight and self.text is None:
            raise ModelError(f"reference: image weight {self.image_weight}: expected text vectors with it, got none")


@dataclass(frozen=True, eq=False)
class Judgement:
    """Of B pictures, in the host's memory, float32.

    maps: B x S x S. scores: B. image_probabilities: B, that the picture as a whole is abnormal, by text; NaN for a picture
    without text vectors. shifts: B, what was added to every pixel of a map so that one threshold serves score and mask: the
    image probability's share, less the background. `maps` less `shifts` are the published maps.
    """

    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    image_probabilities: NDArray[np.float32]
    shifts: NDArray[np.float32]

    @property
    def published_maps(self) -> NDArray[np.float32]:
        """B x S x S: sums over the layers, 0 and more."""
        return self.maps - self.shifts[:, None, None]


class Detector:
    """A feature extractor and APRIL-GAN's two rules over it. Holds no recipe: each frame comes with its own reference.

    Wherever references are taken, a bank alone stands for `Reference(bank)`.
    """

    def __init__(self, extractor: FeatureExtractor, texts: Path | None = None) -> None:
        """texts: a folder to keep text vectors in, so that an object's name is encoded once in its life; None: in memory."""
        self.extractor = extractor
        self.fingerprint: dict[str, Any] = extractor.spec.fingerprint(extractor.weights_sha256)
        self._text_folder = texts

    @property
    def knows_text(self) -> bool:
        """Whether the model has both things that zero-shot needs: a text encoder, and linear layers."""
        return self.linear_layers_sha256 is not None

    @property
    def linear_layers_sha256(self) -> str | None:
        """Of their file (hex); None without."""
        return self.extractor.projection_sha256 if isinstance(self.extractor, TextEncoder) else None

    @cached_property
    def _texts(self) -> Texts:
        return Texts(self.extractor, self._text_folder)

    def text(self, object_name: str) -> Tensor:
        """Text vectors of an object, 2 x D, on the device, encoded once. ModelError for a model that knows no text."""
        return self._texts.of(object_name)

    def reference(self, mode: Mode, *, bank: Bank | None = None, object_name: str = "") -> Reference:
        """The reference of a recipe in that mode: zero_shot needs the object's name, few_shot a bank, both needs both."""
        if mode != "zero_shot" and bank is None:
            raise ModelError(f"reference: mode {mode}: expected a bank, got none. Register shots, or choose mode zero_shot")
        text = None if mode == "few_shot" else self.text(object_name)
        return Reference(None if mode == "zero_shot" else bank, text)

    def encode(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        """Features of pictures, cropped to their regions of interest: H x W or H x W x 3 (RGB), uint8, of any sizes."""
        return self.extractor.extract(pictures)

    def build(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        shots: Sequence[str],
        region: tuple[int, int, int, int] | None = None,
        max_rows: int | None = None,
    ) -> Bank:
        """The bank of reference shots: `shots` is each picture's sha256 (hex), in that order. See `build_bank`.

        max_rows: None: as the spec says.
        """
        most = max_rows or self.extractor.spec.bank_rows
        return build_bank(self.encode(pictures), fingerprint=self.fingerprint, shots=shots, region=region, max_rows=most)

    @torch.inference_mode()
    def maps(self, features: PatchFeatures, references: Sequence[Bank | Reference]) -> Tensor:
        """Anomaly maps, B x S x S, float32, on the device; `references` has one for each picture.

        As APRIL-GAN (arXiv 2305.17382), summed over the layers: few-shot 0 to 2 per tapped layer, zero-shot 0 to 1; with
        both, the sum of the two. BankError if a bank is another model's, ModelError for text without `features.joint`.
        """
        given = self._references(features, references)
        size = self.extractor.spec.image_size
        maps = torch.zeros((len(given), size, size), device=features.layers[0].device)
        sharing: dict[int, tuple[Bank, list[int]]] = {}
        for number, reference in enumerate(given):
            if reference.bank is not None:
                sharing.setdefault(id(reference.bank), (reference.bank, []))[1].append(number)
        for bank, numbers in sharing.values():
            own = features if len(numbers) == len(given) else features.select(numbers)
            maps[numbers] = self._few_shot(own, bank)
        joint, texts, numbers = self._told(features, given)
        if joint is not None:
            maps[numbers] += self._zero_shot(joint, features.grids, texts)
        return maps

    @torch.inference_mode()
    def image_probabilities(self, features: PatchFeatures, references: Sequence[Bank | Reference]) -> Tensor:
        """For each picture the probability that it is abnormal as a whole, by text alone; NaN without. B, float32."""
        given = self._references(features, references)
        probabilities = torch.full((len(given),), torch.nan, device=features.layers[0].device)
        joint, texts, numbers = self._told(features, given)
        if joint is not None:
            logits = 100 * (texts @ joint.image[:, :, None])[:, :, 0]
            probabilities[numbers] = logits.softmax(1)[:, 1]
        return probabilities

    def judge(self, pictures: Sequence[NDArray[np.uint8]], references: Sequence[Bank | Reference]) -> Judgement:
        """Maps and scores of pictures, each by its own reference, from one pass of the encoder.

        Raises ModelError when one is not finite: such a score is "not over the threshold", a pass nobody judged.
        """
        return self.judge_features(self.encode(pictures), references)

    @torch.inference_mode()
    def judge_features(self, features: PatchFeatures, references: Sequence[Bank | Reference]) -> Judgement:
        """`judge` of pictures that are encoded, so that they can be judged by several references."""
        given, spec = self._references(features, references), self.extractor.spec
        maps, chances = self.maps(features, given), self.image_probabilities(features, given)
        weights = maps.new_tensor([reference.image_weight for reference in given])
        # Probabilities are NaN where there is no text, and no weight either.
        shifts = torch.where(weights > 0, weights * chances, 0)
        if spec.background is not None:
            limits = maps.new_tensor([reference.background_limit for reference in given])
            shifts -= torch.minimum(background(maps, spec.background), limits)
        maps += shifts[:, None, None]
        scores = score(maps, spec.score_share)
        told = torch.tensor([reference.text is not None for reference in given], device=maps.device)
        broken = torch.where(~maps.isfinite().flatten(1).all(1) | (told & ~chances.isfinite()))[0]
        if len(broken):
            raise ModelError(
                f"model {spec.name}: expected finite anomaly maps, got NaN or infinity for pictures "
                f"{broken.tolist()} of {len(maps)}. Check the device's memory and the weights"
            )
        return Judgement(*(tensor.cpu().numpy() for tensor in (maps, scores, chances, shifts)))

    def _few_shot(self, features: PatchFeatures, bank: Bank) -> Tensor:
        """Per layer the least `1 - cosine` to the bank, bilinear with aligned corners to S x S, summed."""
        self._check(bank)
        size = self.extractor.spec.image_size
        total = torch.zeros((len(features), 1, size, size), device=features.layers[0].device)
        for queries, rows, grid in zip(features.layers, bank.layers, features.grids, strict=True):
            distances = nearest(queries, rows).view(-1, 1, *grid)
            total += F.interpolate(distances, size=(size, size), mode="bilinear", align_corners=True)
        return total[:, 0]

    def _zero_shot(self, joint: JointFeatures, grids: Sequence[tuple[int, int]], texts: Tensor) -> Tensor:
        """Per layer the probability of "abnormal", summed."""
        size = self.extractor.spec.image_size
        total = torch.zeros((len(texts), size, size), device=texts.device)
        for tokens, grid in zip(joint.layers, grids, strict=True):
            total += text_map(tokens, texts, grid, size)[:, 1]
        return total

    def _references(self, features: PatchFeatures, references: Sequence[Bank | Reference]) -> list[Reference]:
        if len(references) != len(features):
            raise ModelError(f"maps: expected one bank for each of {len(features)} pictures, got {len(references)}")
        return [Reference(given) if isinstance(given, Bank) else given for given in references]

    def _told(self, features: PatchFeatures, given: Sequence[Reference]) -> tuple[JointFeatures | None, Tensor, list[int]]:
        """The pictures with text vectors: their joint features (None: there are none), the vectors, and their numbers."""
        numbers = [number for number, reference in enumerate(given) if reference.text is not None]
        if not numbers:
            return None, torch.empty(0), numbers
        if features.joint is None:
            spec = self.extractor.spec
            raise ModelError(
                f"model {spec.name}: zero-shot: expected features that know text, got patch features alone ({spec.family} "
                f"{spec.backbone}). Choose a CLIP preset with linear_layers, or mode few_shot"
            )
        joint = features.joint
        if len(numbers) < len(given):
            joint = joint.select(torch.tensor(numbers, device=joint.image.device))
        return joint, torch.stack([reference.text for reference in given if reference.text is not None]), numbers

    def _check(self, bank: Bank) -> None:
        if bank.manifest.fingerprint != self.fingerprint:
            raise BankError(
                f"bank {bank.name}: expected one made by model {self.fingerprint}, got {bank.manifest.fingerprint}."
                f" Build the bank again from its shots"
            )


def text_map(tokens: Tensor, texts: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """The probabilities of "normal" and "abnormal" of one layer, B x 2 x S x S; they sum to 1.

    tokens: B x N x D, mapped by the layer's linear layer, L2-normalised, in row order of the grid; texts: B x 2 x D. Logits
    are interpolated (bilinear, corners aligned) before the softmax, as APRIL-GAN published it; training does the same.
    """
    logits = (100 * (texts @ tokens.mT)).view(-1, 2, *grid)
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=True).softmax(1)
