"""Agreement with the authors' own code (tests/data/april_gan_tiny.npz), through the path that the daemon runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray

from model.bank import Bank
from model.clip import ClipExtractor, squash
from model.detector import Detector, Reference
from model.features import create_extractor
from tests.tiny_clip import DATA, clip_state, linear_state, tiny_spec

OBJECTS = ("bottle", "metal nut")
TESTS = (0, 1, 2)

Golden = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(DATA / "april_gan_tiny.npz", allow_pickle=False) as data:
        return dict(data)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return Detector(create_extractor(tiny_spec(tmp_path_factory.mktemp("tiny"), clip_state(), linear_state())))


@pytest.fixture(scope="module")
def bank(detector: Detector, golden: Golden) -> Bank:
    return detector.build([golden["reference0/image"], golden["reference1/image"]], ["a", "b"])


def test_the_recipe_draws_the_weights_that_were_measured(golden: Golden) -> None:
    checksum = sum(float(tensor.double().abs().sum()) for tensor in clip_state().values())
    assert checksum == pytest.approx(float(golden["norm/weight_checksum"][0]), rel=1e-12)


@pytest.mark.parametrize("test", TESTS)
def test_preprocessing(detector: Detector, golden: Golden, test: int) -> None:
    spec = detector.extractor.spec
    pixels = squash([golden[f"test{test}/image"]], spec.image_size)[0].numpy() / 255
    got = (pixels - np.array(spec.mean)[:, None, None]) / np.array(spec.std)[:, None, None]
    np.testing.assert_allclose(got, golden[f"test{test}/preprocessed"], atol=1e-5)


@pytest.mark.parametrize("name", OBJECTS)
def test_text_vectors(detector: Detector, golden: Golden, name: str) -> None:
    text = detector.text(name)
    assert detector.text(name) is text
    np.testing.assert_allclose(text.numpy().T, golden[f"text_features/{name}"], atol=1e-5)


def test_patch_features_of_the_last_layer(detector: Detector, bank: Bank, golden: Golden) -> None:
    raw = torch.from_numpy(golden["bank/layer12"])
    assert [tuple(layer.shape) for layer in bank.layers] == [(128, 32)] * 4
    torch.testing.assert_close(bank.layers[3], F.normalize(raw, dim=-1), atol=1e-5, rtol=0)
    extractor = detector.extractor
    assert isinstance(extractor, ClipExtractor)
    maps, _ = extractor.tokens(squash([golden["reference0/image"], golden["reference1/image"]], 112))
    # Values up to 27: a float32's own steps are 2e-6 there.
    torch.testing.assert_close(maps[3].flatten(2).mT.flatten(0, 1), raw, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("name", OBJECTS)
def test_maps_and_image_probability_of_each_picture_alone(
    detector: Detector, bank: Bank, golden: Golden, test: int, name: str
) -> None:
    picture = golden[f"test{test}/image"]
    zero, few = golden[f"test{test}/{name}/zero_shot_map"], golden[f"test{test}/few_shot_map"]
    told = detector.judge([picture], [detector.reference("zero_shot", object_name=name)])
    np.testing.assert_allclose(told.maps[0], zero, atol=1e-5, rtol=0)
    assert told.image_probabilities[0] == pytest.approx(float(golden[f"test{test}/{name}/image_probability"]), abs=1e-4)
    np.testing.assert_allclose(detector.judge([picture], [bank]).maps[0], few, atol=1e-5, rtol=0)
    both = detector.judge([picture], [detector.reference("both", bank=bank, object_name=name)])
    np.testing.assert_allclose(both.maps[0], zero + few, atol=1e-5, rtol=0)
    assert both.image_probabilities[0] == told.image_probabilities[0]


def test_different_objects_modes_and_banks_in_one_batch(detector: Detector, bank: Bank, golden: Golden) -> None:
    alone = detector.build([golden["reference0/image"]], ["a"])
    pictures, references, expected = [], [], []
    chances: list[Any] = []
    for test in TESTS:
        picture, few = golden[f"test{test}/image"], golden[f"test{test}/few_shot_map"]
        for name in OBJECTS:
            zero, chance = golden[f"test{test}/{name}/zero_shot_map"], golden[f"test{test}/{name}/image_probability"]
            pictures += [picture, picture]
            references += [
                detector.reference("zero_shot", object_name=name),
                detector.reference("both", bank=bank, object_name=name),
            ]
            expected += [zero, zero + few]
            chances += [chance, chance]
        pictures += [picture, picture]
        references += [detector.reference("few_shot", bank=bank), Reference(alone)]
        expected += [few, detector.judge([picture], [alone]).maps[0]]
        chances += [np.nan, np.nan]
    together = detector.judge(pictures, references)
    np.testing.assert_allclose(together.maps, np.stack(expected), atol=1e-5, rtol=0)
    np.testing.assert_allclose(together.image_probabilities, np.stack(chances), atol=1e-4, rtol=0)
