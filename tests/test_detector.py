import tomllib
from dataclasses import replace
from importlib import resources
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from pydantic import TypeAdapter

from model.detector import Detector, Reference
from model.errors import BankError, ModelError
from model.features import FeatureExtractor, PatchFeatures, create_extractor
from model.scoring import background, score
from model.spec import ModelSpec


@pytest.fixture(scope="module")
def detector() -> Detector:
    preset = tomllib.loads(resources.files("config").joinpath("models/efficientnet-lite0.toml").read_text())
    return Detector(create_extractor(TypeAdapter(ModelSpec).validate_python(preset), runtime="torch"))


def part(seed: int, pitch: int = 12) -> NDArray[np.uint8]:
    """A regular grid with camera noise."""
    rows, columns = np.mgrid[0:200, 0:220]
    grid = np.where((rows % pitch < 3) | (columns % pitch < 3), 180, 120)
    noisy = grid + np.random.default_rng(seed).normal(0, 4, grid.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def test_maps_follow_the_paper_layer_by_layer(detector: Detector) -> None:
    bank = detector.build([part(0), part(1)], ["a", "b"])
    features = detector.encode([part(2)])
    expected = np.zeros((256, 256), np.float32)
    for queries, rows, grid in zip(features.layers, bank.layers, features.grids, strict=True):
        distances = (1 - queries[0] @ rows.T).amin(1).view(1, 1, *grid)
        expected += F.interpolate(distances, size=(256, 256), mode="bilinear", align_corners=True)[0, 0].numpy()
    maps = detector.maps(features, [bank])
    assert maps.shape == (1, 256, 256)
    np.testing.assert_allclose(maps[0].numpy(), expected, atol=1e-5)
    # Corners are aligned: the map's corner is the corner patch's own distance.
    corner = sum(float((1 - q[0, 0] @ rows.T).min()) for q, rows in zip(features.layers, bank.layers, strict=True))
    assert float(maps[0, 0, 0]) == pytest.approx(corner, abs=1e-5)


def test_a_defect_scores_highest_where_it_is(detector: Detector) -> None:
    bank = detector.build([part(n) for n in range(3)], ["a", "b", "c"])
    spoiled = part(9)
    spoiled[120:150, 40:70] = 20
    good, bad = detector.judge([part(8), spoiled], [bank, bank]).maps
    assert bad.max() > 2 * good.max()
    row, column = np.unravel_index(bad.argmax(), bad.shape)
    assert 110 <= row / 256 * 200 <= 160
    assert 30 <= column / 256 * 220 <= 80


def test_each_frame_is_judged_against_its_own_bank_as_if_alone(detector: Detector) -> None:
    fine, coarse = detector.build([part(0), part(1)], ["a", "b"]), detector.build([part(0, 40)], ["c"])
    frames, banks = [part(5), part(5, 40), part(6), part(6, 40)], [fine, coarse, fine, coarse]
    together = detector.judge(frames, banks).maps
    assert together.dtype == np.float32
    for frame, bank, got in zip(frames, banks, together, strict=True):
        np.testing.assert_allclose(got, detector.judge([frame], [bank]).maps[0], atol=1e-5)
    swapped = detector.judge(frames, banks[::-1]).maps
    assert (swapped.max((1, 2)) > 2 * together.max((1, 2))).all()


def test_score_is_the_largest_value_of_each_map_or_the_mean_of_its_largest() -> None:
    maps = torch.zeros((2, 4, 4))
    maps[0, 1, 2], maps[1, 3, 3] = 0.25, 0.5
    assert score(maps).tolist() == [0.25, 0.5]
    assert score(maps, 0.05).tolist() == [0.25, 0.5]
    assert score(maps, 2 / 16).tolist() == [0.125, 0.25]


def test_background_is_the_level_that_a_share_of_the_map_does_not_exceed() -> None:
    maps = torch.arange(32.0).flip(0).view(2, 4, 4)
    assert background(maps, 0.25).tolist() == [19.0, 3.0]


def test_a_maps_own_background_is_taken_off_it_up_to_the_limit(detector: Detector) -> None:
    spec = replace(detector.extractor.spec, background=0.25, score_share=0.01)
    real = detector.extractor
    own = Detector(
        cast(
            FeatureExtractor,
            SimpleNamespace(spec=spec, weights_sha256=real.weights_sha256, device=real.device, extract=real.extract),
        )
    )
    bank = own.build([part(0), part(1)], ["a", "b"])
    plain = own.judge([part(2)], [bank])
    assert plain.shifts.tolist() == [0.0]
    level = float(np.quantile(plain.maps, 0.25))
    judged = own.judge([part(2)] * 2, [Reference(bank, background_limit=limit) for limit in (10.0, level / 2)])
    assert judged.shifts == pytest.approx([-level, -level / 2], abs=1e-4)
    np.testing.assert_allclose(judged.maps, plain.maps + judged.shifts[:, None, None], atol=1e-6)
    np.testing.assert_allclose(judged.published_maps, np.repeat(plain.maps, 2, axis=0), atol=1e-6)
    top = np.sort(plain.maps.ravel())[-round(0.01 * plain.maps.size) :].mean()
    assert judged.scores == pytest.approx([top - level, top - level / 2], abs=1e-4)


def test_a_bank_of_another_model_or_a_missing_one_is_refused(detector: Detector) -> None:
    bank = detector.build([part(0)], ["a"])
    other = replace(bank, manifest=replace(bank.manifest, fingerprint={**detector.fingerprint, "neighbourhood": 1}))
    with pytest.raises(BankError, match="neighbourhood"):
        detector.judge([part(1)], [other])
    with pytest.raises(ModelError, match="one bank for each"):
        detector.judge([part(1), part(2)], [bank])


def test_a_map_with_nan_is_an_error_not_a_pass(detector: Detector) -> None:
    real = detector.extractor
    bank = detector.build([part(0)], ["a"])

    def extract(pictures: list[NDArray[np.uint8]]) -> PatchFeatures:
        features = real.extract(pictures)
        layers = tuple(layer.clone() for layer in features.layers)
        layers[0][1, 7] = torch.nan
        return PatchFeatures(layers, features.grids)

    broken = SimpleNamespace(spec=real.spec, weights_sha256=real.weights_sha256, device=real.device, extract=extract)
    with pytest.raises(ModelError, match=r"pictures \[1\] of 2"):
        Detector(cast(FeatureExtractor, broken)).judge([part(1), part(2)], [bank, bank])
