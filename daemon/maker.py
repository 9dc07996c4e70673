"""The maker: from a recipe's shots to what judges it, step by step, so that nothing acknowledged is ever lost.

Order: features (a cache), bank file, then one commit that makes it known and current. What was made before is loaded.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from config.errors import PictureError, StoreError
from config.schema import RecipeConfig, Region
from daemon.banks import REGION, Banks, Basis, Found
from daemon.encoded import EncodedShots
from daemon.ledger import Shot
from daemon.marks import Scorer
from daemon.shots import At, Pixels, Shots, box, crop, nowhere, pixel_hash, unbox
from daemon.station import Taught, Untaught
from model.bank import BankManifest, building
from model.calibration import RULE, Calibration, calibrating, even_odds, mirror
from model.detector import Detector, Judgement, Mode, Reference
from model.features import PatchFeatures, join, joining
from model.labelled import Labelled
from model.steps import Steps

log = logging.getLogger(__name__)
T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all); what it raises ends the work."""
Refine = Callable[[str, Calibration, str, Scorer], Labelled | None]
"""What a recipe's marks make of a calibration from shots alone: `daemon.marks.Marks.refine`."""

PARTS = ("encoding reference shots", "choosing rows", "calibrating", "scoring marked parts")


class Do(Protocol):
    """Has the device's owner do a work, in slices, and waits for it."""

    def __call__(self, work: Steps[T], what: str = "", progress: Progress | None = None) -> T: ...


@dataclass(frozen=True)
class _Fit:
    """A stored bank that fits, with the words that judge beside it, and the region of both."""

    found: Found
    reference: Reference
    region: Region | None


class Maker:
    """Makes one recipe's bank at a time, on the builder's thread or, at the start, on the service's."""

    def __init__(
        self,
        store: Path,
        shots: Shots,
        banks: Banks,
        detector: Detector,
        do: Do,
        bank_rows: int | None,
        refine: Refine,
        at: At = nowhere,
    ) -> None:
        """bank_rows: most rows of a layer of the banks; None: as the preset says."""
        self._store = store
        self._shots = shots
        self._banks = banks
        self._detector = detector
        self._do = do
        self._bank_rows = bank_rows or detector.extractor.spec.bank_rows
        self._refine = refine
        self._at = at

    def make(self, recipe: RecipeConfig, progress: Progress, before_commit: Callable[[], None]) -> Taught | Untaught:
        """What judges by the present shots, its bank stored and current when this returns.

        before_commit: called when all else is done; what it raises leaves the current bank as it is.
        Raises PictureError when no shot can be used, ModelError when they make no bank or the model does not know the
        recipe's mode, StoreError when the disk refuses.
        """
        shots = self._shots.all(recipe.name)
        mode = self._mode(recipe, bool(shots))
        if not shots and mode != "zero_shot":
            before_commit()
            self._banks.none_current(recipe.name)
            return Untaught(f"recipe {recipe.name!r} has no reference shots; register pictures of good parts")
        words = self._words(recipe)
        if not shots:
            calibration = even_odds(len(self._detector.extractor.spec.layers))
            basis = self._basis(recipe, mode)
            reference = Reference(text=words)
            labelled = self._labelled(recipe.name, recipe.region, "words", basis, reference, calibration, (), progress)
            before_commit()
            self._banks.none_current(recipe.name)
            return _taught(recipe.region, reference, calibration, labelled)
        manifest = self.manifest(recipe, [shot.shot for shot in shots])
        if (stored := self._stored(recipe, manifest.hash)) is not None:
            refined = self._relabel(recipe.name, manifest.hash, stored, progress, before_commit)
            self._banks.make_current(recipe.name, manifest.hash, rolled_back=False)
            return refined
        used, features, mirrored = self._encode(recipe, shots, progress)
        manifest, bank = self.manifest(recipe, used), None
        if mode != "zero_shot":
            steps = building(
                features,
                fingerprint=self._detector.fingerprint,
                shots=used,
                region=manifest.region,
                max_rows=self._bank_rows,
            )
            bank = self._do(steps, PARTS[1], progress)
        reference, basis = Reference(bank, words), self._basis(recipe, mode)
        calibration = self._do(calibrating(self._detector, features, mirrored, reference), PARTS[2], progress)
        labelled = self._labelled(recipe.name, recipe.region, manifest.hash, basis, reference, calibration, used, progress)
        before_commit()
        self._banks.store(recipe.name, manifest.hash, bank, basis, calibration, labelled)
        taught = _taught(recipe.region, reference, calibration, labelled)
        log.info(
            "recipe %s: %s, %d shots, threshold %.4f",
            recipe.name,
            f"bank {bank.name} built" if bank else "words calibrated",
            calibration.shots,
            taught.calibration.threshold,
        )
        return taught

    def refine(self, recipe: RecipeConfig, bank: str, progress: Progress, before_commit: Callable[[], None]) -> Taught | None:
        """What judges by a stored bank with the recipe's present marks, kept when this returns. None: as before. See `make`.

        Its region stays, whatever the recipe's.
        Raises StoreError when there is no such bank that fits (see `load`).
        """
        stored = self._stored(recipe, bank, any_region=True)
        if stored is None:
            raise StoreError(f"recipe {recipe.name}: bank {bank[:16]} does not fit the model and recipe any more. Rebuild it.")
        taught = self._relabel(recipe.name, bank, stored, progress, before_commit)
        before = _as_stored(stored)
        return None if taught.calibration == before.calibration else taught

    def judge(self, pixels: Pixels, reference: Reference) -> Judgement:
        """What a reference says of one picture (cropped)."""

        def work() -> Steps[Judgement]:
            yield from ()
            return self._detector.judge([pixels], [reference])

        return self._do(work())

    def _relabel(self, recipe: str, bank: str, stored: _Fit, progress: Progress, before_commit: Callable[[], None]) -> Taught:
        reference, found, basis = stored.reference, stored.found, stored.found.basis
        shots = found.bank.manifest.shots if found.bank is not None else [shot.shot for shot in self._shots.all(recipe)]
        labelled = self._labelled(recipe, stored.region, bank, basis, reference, found.calibration, shots, progress)
        before_commit()
        if labelled != found.labelled:
            self._banks.relabel(recipe, bank, basis, found.calibration, labelled)
        return _taught(stored.region, reference, found.calibration, labelled)

    def _labelled(
        self,
        recipe: str,
        region: Region | None,
        bank: str,
        basis: Basis,
        reference: Reference,
        calibration: Calibration,
        shots: Sequence[str],
        progress: Progress,
    ) -> Labelled | None:
        """A marked part that has become a shot does not count: its own bank knows it by heart."""
        judging = calibration.apply(reference)

        def scorer(pixels: Pixels) -> float:
            progress(PARTS[3], 0, 1)
            if pixel_hash(pixels) in shots:
                raise PictureError("the picture is a reference shot by now")
            return float(self.judge(crop(pixels, region, "the picture"), judging).scores[0])

        key = json.dumps([bank, basis, judging.image_weight, judging.background_limit], sort_keys=True)
        return self._refine(recipe, calibration, hashlib.sha256(key.encode()).hexdigest(), scorer)

    def _encode(
        self, recipe: RecipeConfig, shots: list[Shot], progress: Progress
    ) -> tuple[list[str], PatchFeatures, list[PatchFeatures]]:
        """The shots that can be used, their features, and those of the mirror image of each."""
        fingerprint, layers = self._detector.fingerprint, self._detector.linear_layers_sha256
        folder = self._store / "recipes" / recipe.name / "features"
        kept = EncodedShots(folder, fingerprint, layers, box(recipe.region))
        used: list[str] = []
        pairs: list[PatchFeatures] = []
        for done, shot in enumerate(shots):
            progress(PARTS[0], done, len(shots))
            features = kept.load(shot.shot)
            if features is None:
                try:
                    pixels = crop(self._shots.read(shot), recipe.region, shot.file)
                except PictureError as error:
                    log.warning("recipe %s: a shot is left out: %s", recipe.name, error)
                    continue
                features = self._do(self._encoding(pixels))
                try:
                    kept.store(shot.shot, features)
                except OSError as error:
                    raise StoreError(f"{folder}: cannot store features ({error.strerror}). Free space.") from None
                self._at("features_stored")
            used.append(shot.shot)
            pairs.append(features)
        if not pairs:
            raise PictureError(f"recipe {recipe.name}: none of its {len(shots)} shots can be used. Register others")
        kept.keep_only(used)
        joined = self._do(joining([pair.select(slice(0, 1)) for pair in pairs], self._detector.extractor.device))
        progress(PARTS[0], len(shots), len(shots))
        return used, joined, [pair.select(slice(1, 2)) for pair in pairs]

    def _encoding(self, shot: Pixels) -> Steps[PatchFeatures]:
        """A shot and its mirror image, one picture at a time: frames wait for each."""
        own = self._detector.encode([shot])
        yield 1, 2
        return join([own, self._detector.encode([mirror(shot)])])

    # What a bank depends on.

    def _mode(self, recipe: RecipeConfig, any_shots: bool) -> Mode:
        if recipe.mode is not None:
            return recipe.mode
        if not self._detector.knows_text:
            return "few_shot"
        return "both" if any_shots else "zero_shot"

    def _words(self, recipe: RecipeConfig) -> Tensor | None:
        """Text vectors; None where they do not judge. ModelError for a model that knows no text."""
        if self._mode(recipe, any_shots=True) == "few_shot":
            return None

        def work() -> Steps[Tensor]:
            yield from ()
            return self._detector.text(recipe.object)

        return self._do(work())

    def manifest(self, recipe: RecipeConfig, shots: list[str]) -> BankManifest:
        """Of the bank that those shots would make."""
        return BankManifest(self._detector.fingerprint, tuple(shots), box(recipe.region), self._bank_rows)

    def _basis(self, recipe: RecipeConfig, mode: Mode) -> Basis:
        spec = self._detector.extractor.spec
        basis: Basis = {
            "rule": RULE,
            "mode": mode,
            "score_share": spec.score_share,
            "background": spec.background,
        }
        if mode == "zero_shot":
            basis[REGION] = str(box(recipe.region))
        if mode != "few_shot":
            basis |= {"object": recipe.object, "linear_layers_sha256": self._detector.linear_layers_sha256}
        return basis

    def load(self, recipe: RecipeConfig, bank: str, *, any_region: bool = False) -> Taught | None:
        """What judges by a bank that is stored, as it did last; None when there is none that fits the model and recipe.

        any_region: its region, by which it judges, may be another one than the recipe's.
        """
        stored = self._stored(recipe, bank, any_region=any_region)
        return _as_stored(stored) if stored is not None else None

    def other_region(self, recipe: RecipeConfig, bank: str) -> str | None:
        """The region of a stored bank that does not fit the recipe for its region alone, as people write it."""
        stored = self._stored(recipe, bank, any_region=True)
        if stored is None or (region := box(stored.region)) == box(recipe.region):
            return None
        return ",".join(str(number) for number in region) if region is not None else "the whole frame"

    def _stored(self, recipe: RecipeConfig, bank: str, *, any_region: bool = False) -> _Fit | None:
        words = self._words(recipe)
        basis = self._basis(recipe, self._mode(recipe, any_shots=True))
        found = self._banks.load(recipe.name, bank, basis, self._detector.fingerprint, self._detector.extractor.device)
        if found is None:
            return None
        if found.region != box(recipe.region) and not any_region:
            return None
        return _Fit(found, Reference(found.bank, words), unbox(found.region))


def _as_stored(stored: _Fit) -> Taught:
    return _taught(stored.region, stored.reference, stored.found.calibration, stored.found.labelled)


def _taught(region: Region | None, reference: Reference, calibration: Calibration, labelled: Labelled | None) -> Taught:
    judging = labelled.apply(calibration) if labelled is not None else calibration
    return Taught(judging.apply(reference), judging, region)
