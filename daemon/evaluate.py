"""`aprilcam evaluate`: how well a preset judges a data set, measured through the path that inspects."""

import hashlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from config.errors import PictureError
from connectors.cameras.pictures import picture_size, read_picture
from daemon.evaluate_results import CategoryResult, ResultsFile, Run, Setting
from model.bank import build_bank
from model.calibration import RULE, calibrate, even_odds, mirror
from model.dataset import Category, Sample
from model.detector import Detector, Judgement, Mode, Reference
from model.errors import DatasetError, ShotsError
from model.evaluation import PixelTally, Rates, Truth, published_scores, rank, rates, truth
from model.features import PatchFeatures, join

POOL = 32
"""Shots are drawn from so many good training pictures, the first by name: what a line would have at hand."""
AT_ONCE = 8
"""Test pictures in memory at a time."""

Advance = Callable[[str, int, int], None]
"""Told of every step: a category's name, pictures done, and pictures in all."""


def settings_of(mode: Mode, shots: Sequence[int], seeds: int) -> list[Setting]:
    """Every way to judge, in the order asked. Zero-shot, and 0 shots, draw nothing: those are one setting."""
    found = [
        Setting("zero_shot", 0, 0) if mode == "zero_shot" or count == 0 else Setting(mode, count, seed)
        for count in shots
        for seed in range(seeds)
    ]
    return list(dict.fromkeys(found))


def draw(category: Category, setting: Setting) -> list[Path]:
    """The reference shots of a setting; the same for the same names, on any machine."""
    return random.Random(setting.seed).sample(category.train[:POOL], setting.shots)  # noqa: S311 - repeatable on purpose


def check_shots(categories: Sequence[Category], settings: Sequence[Setting]) -> None:
    """DatasetError unless every category has pictures enough to draw from."""
    most = max(setting.shots for setting in settings)
    for category in categories:
        if most > len(category.train[:POOL]):
            raise DatasetError(
                f"category {category.name}: {most} shots: expected as many good pictures among the first {POOL} of train, got "
                f"{len(category.train[:POOL])}. Ask for fewer shots"
            )


def identity(detector: Detector, dataset: Path, settings: Sequence[Setting]) -> dict[str, Any]:
    """All that shapes the results of a category, as plain JSON values: results of another identity are not continued."""
    spec = detector.extractor.spec
    return {
        "aprilcam": version("aprilcam"),
        "dataset": str(dataset.resolve()),
        "preset": spec.name,
        "model": detector.fingerprint,
        "score": [spec.score_share, spec.background],
        "linear_layers_sha256": detector.linear_layers_sha256,
        "calibration_rule": RULE,
        "device": str(detector.extractor.device),
        "mode": settings[-1].mode,
        "shots": list(dict.fromkeys(setting.shots for setting in settings)),
        "seeds": len({setting.seed for setting in settings}),
    }


@dataclass(frozen=True, eq=False)
class Measured:
    """A category's results, and by what each setting judged."""

    category: Category
    result: CategoryResult
    references: tuple[Reference, ...]


def evaluate(
    detector: Detector,
    categories: Sequence[Category],
    settings: Sequence[Setting],
    advance: Advance,
    *,
    store: ResultsFile | None = None,
    finished: Callable[[Measured], None] = lambda _: None,
) -> Iterator[CategoryResult]:
    """Results of each category as it is done; those that `store` has are taken from it, the others added to it.

    finished: called with what was measured, before it is stored.
    Raises DatasetError, PictureError (a picture or mask that cannot be used) and ModelError.
    """
    for category in categories:
        if store is not None and category.name in store.finished:
            yield store.finished[category.name]
            continue
        measured = _measure(detector, category, settings, advance)
        finished(measured)
        if store is not None:
            store.add(measured.result)
        yield measured.result


@dataclass(frozen=True, eq=False)
class _Judge:
    """One setting, taught."""

    setting: Setting
    drawn: tuple[str, ...]
    reference: Reference
    threshold: float | None
    image_weight: float
    note: str


class _Scores:
    """What one setting says of the test pictures seen so far."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.peaks: list[float] = []
        self.probabilities: list[float] = []
        self.pixels = PixelTally()
        self.ms: list[float] = []

    def add(self, judgement: Judgement, truths: Sequence[Truth | None], seconds: float) -> None:
        published = judgement.published_maps
        self.scores += judgement.scores.tolist()
        self.peaks += published.max(axis=(1, 2)).tolist()
        self.probabilities += judgement.image_probabilities.tolist()
        for own, true in zip(published, truths, strict=True):
            if true is not None:
                self.pixels.add(own, true)
        self.ms.append(1e3 * seconds / len(judgement.maps))


def _measure(detector: Detector, category: Category, settings: Sequence[Setting], advance: Advance) -> Measured:
    """Each test picture is read and encoded once, and judged in every setting.

    Memory, however many test pictures: the features of the shots drawn and of their mirror images (at most POOL pictures
    each) and the settings' banks (a copy of the shots' each); AT_ONCE pictures with their features and, one setting at a
    time, their maps; for each setting what `PixelTally` states.
    """
    total = len(category.test)
    advance(category.name, 0, total)
    judges = _teach(detector, category, settings)
    scores = [_Scores() for _ in judges]
    for start in range(0, total, AT_ONCE):
        samples = category.test[start : start + AT_ONCE]
        pictures = [read_picture(sample.picture) for sample in samples]
        truths = [truth_of(sample, detector.extractor.spec.image_size) for sample in samples]
        begin = time.perf_counter()
        features = detector.encode(pictures)
        _wait(detector)
        encoding_s = time.perf_counter() - begin
        for judge, found in zip(judges, scores, strict=True):
            begin = time.perf_counter()
            judgement = detector.judge_features(features, [judge.reference] * len(samples))
            found.add(judgement, truths, encoding_s + time.perf_counter() - begin)
        advance(category.name, start + len(samples), total)
    runs = tuple(_run(judge, found, category) for judge, found in zip(judges, scores, strict=True))
    names = tuple(_name(category, sample.picture) for sample in category.test)
    result = CategoryResult(category.name, names, tuple(sample.defect for sample in category.test), runs)
    return Measured(category, result, tuple(judge.reference for judge in judges))


def _run(judge: _Judge, found: _Scores, category: Category) -> Run:
    defective = np.array([sample.defect is not None for sample in category.test])
    peaks, probabilities = np.array(found.peaks), np.array(found.probabilities)
    scores = np.array(found.scores)
    text = judge.reference.text is not None
    return Run(
        setting=judge.setting,
        drawn=judge.drawn,
        scores=tuple(scores.tolist()),
        image=rank(scores, defective),
        published=rank(_published(judge.setting, probabilities, peaks), defective) if text else None,
        pixel=found.pixels.ranking(),
        pro=found.pixels.pro(),
        image_weight=judge.image_weight,
        threshold=judge.threshold,
        rates=Rates(None, None) if judge.threshold is None else rates(scores, defective, judge.threshold),
        note=judge.note,
        ms_per_picture=statistics.median(found.ms),
    )


def _published(setting: Setting, probabilities: NDArray[np.float64], peaks: NDArray[np.float64]) -> NDArray[np.float64]:
    """The authors use the map's peak only where there are shots; zero-shot, the probability alone."""
    return probabilities if setting.shots == 0 else published_scores(probabilities, peaks)


def _name(category: Category, picture: Path) -> str:
    """Under the category's folder, where VisA's split can name any file."""
    return Path(os.path.relpath(picture, category.root)).as_posix()


# teaching


def _teach(detector: Detector, category: Category, settings: Sequence[Setting]) -> list[_Judge]:
    @cache
    def encoded(shot: Path) -> tuple[PatchFeatures, PatchFeatures, str]:
        """Of the shot and of its mirror image, and its name."""
        pixels = read_picture(shot)
        return detector.encode([pixels]), detector.encode([mirror(pixels)]), hashlib.sha256(shot.read_bytes()).hexdigest()

    judges = []
    for setting in settings:
        drawn = draw(category, setting)
        shots = [encoded(shot) for shot in drawn]
        features = join([own for own, _, _ in shots]) if shots else None
        bank = None
        if features is not None:
            names = [sha256 for _, _, sha256 in shots]
            most = detector.extractor.spec.bank_rows
            bank = build_bank(features, fingerprint=detector.fingerprint, shots=names, max_rows=most)
        # The category's folder is the object's name, underscores and all, as the authors have it.
        reference = detector.reference(setting.mode, bank=bank, object_name=category.name)
        judge = _Judge(setting, tuple(_name(category, shot) for shot in drawn), reference, None, 0.0, "")
        judges.append(_calibrated(detector, judge, features, [view for _, view, _ in shots]))
    return judges


def _calibrated(detector: Detector, judge: _Judge, shots: PatchFeatures | None, mirrored: Sequence[PatchFeatures]) -> _Judge:
    """With a threshold from the shots alone, as the daemon sets it, or a note that says why there is none."""
    if shots is None:
        calibration = even_odds(len(detector.extractor.spec.layers))
    else:
        try:
            calibration = calibrate(detector, shots, mirrored, judge.reference)
        except ShotsError as error:
            return replace(judge, note=str(error))
    return replace(
        judge,
        threshold=calibration.threshold,
        image_weight=calibration.image_weight,
        reference=calibration.apply(judge.reference),
    )


# pictures


def truth_of(sample: Sample, size: int) -> Truth | None:
    """Its defective pixels at S x S; None of a defective picture without a mask, whose pixels nobody knows.

    Raises PictureError for a mask that cannot be right.
    """
    if sample.defect is None:
        return truth(None, size)
    if sample.mask is None:
        return None
    (width, height), want = picture_size(sample.mask), picture_size(sample.picture)
    if (width, height) != want:
        raise PictureError(
            f"{sample.mask}: mask: expected {want[0]} x {want[1]} pixels as {sample.picture.name} has, got {width} x {height}. "
            f"Replace it"
        )
    pixels = read_picture(sample.mask)
    defect = (pixels if pixels.ndim == 2 else pixels.max(axis=2)) > 0
    if not defect.any():
        raise PictureError(
            f"{sample.mask}: mask: expected pixels over 0 where the defect is, got none. Replace it, or put the picture where "
            f"the good ones are"
        )
    return truth(defect, size)


def _wait(detector: Detector) -> None:
    """A CUDA device works on after its calls return; times are of work that is done."""
    if detector.extractor.device.type == "cuda":
        torch.cuda.synchronize(detector.extractor.device)
