"""A teacher with everything it needs, as the service joins it, and a model that costs next to nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray

from config.schema import RecipeConfig
from connectors.contract import EventKind, Topics
from daemon.banks import Banks
from daemon.builder import Builder, Detail
from daemon.finisher import Finisher
from daemon.inspector import Inspector
from daemon.ledger import Ledger
from daemon.marks import Marks
from daemon.presets import load_preset
from daemon.shots import At, Shots, nowhere
from daemon.station import Taught, Untaught
from daemon.teacher import Teacher
from model.detector import Detector
from model.features import PatchFeatures, to_square
from tests.archived import Kept

RECIPE = RecipeConfig(name="disc", object="disc")


class PixelExtractor:
    """Patches of 8 x 8 pixels of the picture at 128 px are the features."""

    def __init__(self, bank_rows: int = 400) -> None:
        preset = load_preset("efficientnet-lite0", Path())
        self.spec = replace(preset, name="pixels", image_size=128, joined=None, layers=(1,), bank_rows=bank_rows)
        self.weights_sha256 = "0" * 64
        self.device = torch.device("cpu")
        self.callers = 1
        self.encoded = 0
        """Pictures so far."""

    def extract(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        self.encoded += len(pictures)
        squares = to_square(pictures, 128).float().mean(1, keepdim=True)
        patches = F.unfold(squares, 8, stride=8).mT
        return PatchFeatures((F.normalize(patches + 20, dim=2),), ((16, 16),))


class School:
    """One state folder with its teacher; made anew, it is the same after a restart."""

    def __init__(
        self,
        folder: Path,
        recipe: RecipeConfig = RECIPE,
        detector: Detector | None = None,
        at: At = nowhere,
        on_taught: Callable[[RecipeConfig, Taught | Untaught], None] = lambda *_: None,
        **archive: Any,
    ) -> None:
        """archive: settings of the archive whose marks refine the threshold."""
        self.folder = folder
        self.recipe = recipe
        self.events: list[tuple[str, Detail]] = []
        self.told: list[Taught | Untaught] = []
        self.ledger = Ledger(folder)
        self.extractor = PixelExtractor()
        self.detector = detector or Detector(self.extractor)
        self.inspector = Inspector(Finisher(Topics("t")), max_batch=4, max_wait_s=0.0)
        self.kept = Kept(folder, self.ledger, **archive)
        self.marks = Marks(self.ledger, self.kept.archive)
        shots = Shots(folder, self.ledger, at)
        banks = Banks(
            folder, self.ledger, lambda _recipe, bank, why: self._heard("", "bank_corrupt", {"bank": bank, "why": why}), at
        )

        def swap(recipe: RecipeConfig, taught: Taught | Untaught) -> None:
            self.told.append(taught)
            on_taught(recipe, taught)

        self.builder = Builder(
            folder,
            shots,
            banks,
            self.detector,
            self.inspector,
            recipe_of=self._recipe_of,
            on_taught=swap,
            on_event=self._heard,
            refine=self.marks.refine,
            at=at,
        )
        self.teacher = Teacher(shots, banks, self._recipe_of, self.builder, self._heard)

    def _recipe_of(self, name: str) -> RecipeConfig:
        return {self.recipe.name: self.recipe}[name]

    def _heard(self, recipe: str, kind: EventKind, detail: Detail) -> None:
        self.events.append((kind, detail))

    def open(self) -> Taught | Untaught:
        """Start as the service does: what judges."""
        taught = self.teacher.start(self.recipe, lambda *_: None)
        self.builder.start()
        return taught

    def built(self, build: str | None) -> Taught:
        """What judges once that build has ended."""
        assert build is not None
        assert self.builder.wait(build, 30)
        taught = self.builder.taught(self.recipe.name)
        assert taught is not None, self.events
        return taught

    def heard(self, kind: str) -> list[Detail]:
        """Details of the events of that kind."""
        return [detail for own, detail in self.events if own == kind]

    def close(self) -> None:
        self.builder.stop()
        self.inspector.stop()
        self.kept.close()
        self.ledger.close()
