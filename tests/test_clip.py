import dataclasses
import json
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from daemon.presets import load_preset
from model import clip
from model.bank import load_bank
from model.clip import ClipExtractor, squash
from model.detector import Detector, Reference
from model.errors import ModelError, WeightsError
from model.features import TimmExtractor, create_extractor, join
from model.projection import Projection, manifest, read_projection, write_projection
from model.prompts import prompts
from model.spec import ModelSpec
from model.weights import read_state
from tests.tiny_clip import CONFIG, clip_state, linear_state, tiny_spec


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return clip_state()


@pytest.fixture
def spec(tmp_path: Path, state: dict[str, Tensor]) -> ModelSpec:
    return tiny_spec(tmp_path, state, linear_state())


def picture(height: int, width: int, *channels: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


# the spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": None}, "activation"),
        ({"activation": "relu"}, "activation"),
        ({"layers": [0, 3]}, "rising, from 1"),
        ({"precision": "fp8"}, "precision"),
        ({"weights": "wheel:efficientnet-lite0"}, "tag:<name>"),
        ({"linear_layers": None, "linear_layers_sha256": "ab"}, "linear_layers_sha256"),
    ],
)
def test_preset_of_a_clip_refuses_what_fits_none(spec: ModelSpec, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ModelSpec).validate_python({**dataclasses.asdict(spec), **change})


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation", "gelu"), ("linear_layers", "a.pth"), ("precision", "bf16"), ("weights", "tag:openai")],
)
def test_preset_of_timm_refuses_what_is_clips(key: str, value: str) -> None:
    preset = tomllib.loads(resources.files("config").joinpath("models/efficientnet-lite0.toml").read_text())
    with pytest.raises(ValidationError, match=key):
        TypeAdapter(ModelSpec).validate_python({**preset, key: value})


def test_fingerprint_knows_what_shapes_patch_features_of_a_clip(spec: ModelSpec) -> None:
    base = spec.fingerprint("ab")
    assert replace(spec, linear_layers=None).fingerprint("ab") == base
    assert replace(spec, activation="quick_gelu").fingerprint("ab") != base
    assert replace(spec, precision="bf16").fingerprint("ab") != base


@pytest.mark.parametrize(
    ("name", "family", "grid"),
    [("april-gan-vit-l-14-336", "open_clip", 37), ("april-gan-vit-b-16", "open_clip", 32), ("dinov2-small", "timm", 32)],
)
def test_shipped_presets_are_of_models_that_exist(name: str, family: str, grid: int) -> None:
    preset = load_preset(name, Path())
    assert (preset.name, preset.family) == (name, family)
    if family == "open_clip":
        config = clip._read_config(preset)
        assert preset.image_size == grid * config["vision_cfg"]["patch_size"]
        assert preset.layers[-1] == config["vision_cfg"]["layers"]
        assert open_clip.pretrained.get_pretrained_cfg(preset.backbone, preset.weights.removeprefix("tag:"))


# features


def test_features_are_normalised_float32_of_every_kind_of_picture(spec: ModelSpec) -> None:
    features = create_extractor(spec).extract([picture(30, 40), picture(150, 110, 3)])
    assert features.grids == ((8, 8),) * 4
    assert features.joint is not None
    assert [tuple(layer.shape) for layer in features.layers] == [(2, 64, 32)] * 4
    assert [tuple(layer.shape) for layer in features.joint.layers] == [(2, 64, 24)] * 4
    for tensor in (*features.layers, *features.joint.layers, features.joint.image):
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(tensor.shape[:-1]))


def test_features_of_a_picture_do_not_depend_on_the_others(spec: ModelSpec) -> None:
    extractor = create_extractor(spec)
    pictures = [picture(100 + 31 * n, 90, *((3,) if n % 2 else ()), seed=n) for n in range(6)]
    together = extractor.extract(pictures)
    for number, one in enumerate(pictures):
        alone, own = extractor.extract([one]), together.select([number])
        assert alone.joint is not None
        assert own.joint is not None
        gots = (*alone.layers, *alone.joint.layers, alone.joint.image)
        wants = (*own.layers, *own.joint.layers, own.joint.image)
        for got, want in zip(gots, wants, strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_grey_equals_its_rgb_and_read_only_views_are_taken() -> None:
    grey = picture(120, 100)
    grey.flags.writeable = False
    assert torch.equal(squash([grey[10:90, ::-1]], 56), squash([np.stack([grey[10:90, ::-1]] * 3, axis=2)], 56))


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.float32), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8), np.uint8), None])
def test_what_is_not_a_picture_is_refused(spec: ModelSpec, wrong: NDArray[np.uint8] | None) -> None:
    with pytest.raises(ModelError, match="extract: expected"):
        create_extractor(spec).extract([] if wrong is None else [wrong])


def test_activation_is_the_specs_whatever_the_config_says(spec: ModelSpec, tmp_path: Path) -> None:
    config = tmp_path / "quick.json"
    config.write_text(json.dumps({**json.loads(CONFIG.read_text()), "quick_gelu": True}))
    plain = create_extractor(spec).extract([picture(60, 60)])
    still = create_extractor(replace(spec, backbone=str(config))).extract([picture(60, 60)])
    quick = create_extractor(replace(spec, activation="quick_gelu")).extract([picture(60, 60)])
    assert torch.equal(plain.layers[3], still.layers[3])
    assert not torch.allclose(plain.layers[3], quick.layers[3], atol=1e-3)


def test_neighbourhood_averages_patches_but_not_what_text_sees(spec: ModelSpec) -> None:
    one = create_extractor(spec)
    assert isinstance(one, ClipExtractor)
    features = create_extractor(replace(spec, neighbourhood=3)).extract([picture(60, 60)])
    maps, _ = one.tokens(squash([picture(60, 60)], 112))
    patch = maps[0][0, :, 4:7, 2:5].mean((1, 2))
    torch.testing.assert_close(features.layers[0][0, 5 * 8 + 3], patch / patch.norm(), atol=1e-5, rtol=0)
    plain = one.extract([picture(60, 60)])
    assert features.joint is not None
    assert plain.joint is not None
    torch.testing.assert_close(features.joint.layers[0], plain.joint.layers[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_nearly_the_same_features_and_keeps_them_so(spec: ModelSpec, precision: Any) -> None:
    want = create_extractor(spec).extract([picture(60, 60)])
    got = create_extractor(replace(spec, precision=precision)).extract([picture(60, 60)])
    for low, full in zip(got.layers, want.layers, strict=True):
        assert low.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        assert float((low * full).sum(-1).min()) > 0.99


def test_a_bank_in_low_precision_gives_nearly_the_same_maps(spec: ModelSpec, tmp_path: Path) -> None:
    shots, part = [picture(60, 60), picture(70, 50)], picture(50, 60)
    maps = []
    for precision in ("fp32", "bf16"):
        detector = Detector(create_extractor(replace(spec, precision=precision)))
        bank = detector.build(shots, ["a", "b"])
        bank.save(tmp_path / bank.name)
        loaded = load_bank(tmp_path / bank.name, detector.fingerprint)
        assert loaded.layers[0].dtype == bank.layers[0].dtype
        # A shot is as near to its own rows as float32 can tell.
        assert detector.judge(shots[:1], [loaded]).maps.max() < 1e-5
        maps.append(detector.judge([part], [loaded]).maps)
    np.testing.assert_allclose(maps[1], maps[0], atol=0.05 * maps[0].max())


def test_a_resnet_of_the_rn50_family_runs_at_another_size(spec: ModelSpec, tmp_path: Path) -> None:
    config = tmp_path / "rn-tiny.json"
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None}
    config.write_text(json.dumps({**json.loads(CONFIG.read_text()), "vision_cfg": vision}))
    torch.manual_seed(0)
    network = open_clip.CLIP(**json.loads(config.read_text())).eval()
    torch.save(network.state_dict(), tmp_path / "rn.pt")
    torch.save({"trainable_linearlayer": linear_state((32, 64, 128, 256))}, tmp_path / "rn.pth")
    small = replace(
        spec,
        backbone=str(config),
        weights=str(tmp_path / "rn.pt"),
        layers=(1, 2, 3, 4),
        image_size=64,
        linear_layers=str(tmp_path / "rn.pth"),
    )
    extractor = create_extractor(small)
    assert isinstance(extractor, ClipExtractor)
    assert extractor.widths == (32, 64, 128, 256)
    # At its own size: open_clip's own outputs.
    x = (squash([picture(64, 64, 3)], 64) / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    with torch.inference_mode():
        want = network.visual.layer4(network.visual.layer3(network.visual.layer2(network.visual.layer1(network.visual.stem(x)))))
        image = F.normalize(network.encode_image(x), dim=-1)
    features = extractor.extract([picture(64, 64, 3)])
    assert features.joint is not None
    torch.testing.assert_close(features.layers[3], F.normalize(want.flatten(2).mT, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.joint.image, image, atol=1e-5, rtol=0)
    larger = Detector(create_extractor(replace(small, image_size=128)))
    judged = larger.judge([picture(90, 70)], [larger.reference("zero_shot", object_name="bottle")])
    assert judged.maps.shape == (1, 128, 128)
    assert larger.encode([picture(90, 70)]).grids == ((32, 32), (16, 16), (8, 8), (4, 4))
    low = create_extractor(replace(small, precision="bf16")).extract([picture(64, 64, 3)])
    assert float((low.layers[3] * features.layers[3]).sum(-1).min()) > 0.99


# what does not fit


def test_a_backbone_layer_size_or_tag_that_does_not_exist_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Near: .*ViT-L-14"):
        create_extractor(replace(spec, backbone="ViT-L-14-337"))
    with pytest.raises(ModelError, match="custom_text"):
        create_extractor(replace(spec, backbone="ViT-B-16-SigLIP"))
    with pytest.raises(ModelError, match="expected 1 to 12"):
        create_extractor(replace(spec, layers=(3, 13)))
    with pytest.raises(ModelError, match="Choose 98"):
        create_extractor(replace(spec, image_size=100))
    with pytest.raises(WeightsError, match="openai"):
        create_extractor(replace(spec, backbone="ViT-B-16", image_size=64, weights="tag:opanai"))
    (tmp_path / "broken.json").write_text('{"embed_dim": 3}')
    with pytest.raises(ModelError, match=r"broken\.json"):
        create_extractor(replace(spec, backbone=str(tmp_path / "broken.json")))


def test_an_unreachable_hub_is_one_clear_message(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(found: dict[str, Any]) -> str:
        raise FileNotFoundError("Failed to download file")

    monkeypatch.setattr(clip, "download_pretrained", unreachable)
    with pytest.raises(WeightsError, match=r"tag:openai from its hub.*name its path"):
        create_extractor(replace(spec, backbone="ViT-B-16", image_size=64, weights="tag:openai"))


def test_weights_of_another_backbone_are_refused(spec: ModelSpec, state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**state, "visual.proj": torch.zeros(32, 25)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"visual\.proj"):
        create_extractor(replace(spec, weights=str(tmp_path / "other.pt")))
    with pytest.raises(WeightsError, match="sha256"):
        create_extractor(replace(spec, weights_sha256="00"))


def test_weights_in_float16_as_openai_gives_them_are_resized_too(
    spec: ModelSpec, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(
        {**{name: tensor.half() for name, tensor in state.items()}, "input_resolution": torch.tensor(56)}, tmp_path / "h.pt"
    )
    half = create_extractor(replace(spec, weights=str(tmp_path / "h.pt"))).extract([picture(60, 60)])
    for low, full in zip(half.layers, create_extractor(spec).extract([picture(60, 60)]).layers, strict=True):
        torch.testing.assert_close(low, full, atol=0.05, rtol=0)


class _Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("trap"),)  # type: ignore[return-value]


def test_linear_layers_that_do_not_fit_are_refused_and_no_code_in_them_runs(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"trainable_linearlayer": linear_state((32, 32, 48, 32))}, tmp_path / "wide.pth")
    torch.save({"trainable_linearlayer": linear_state((32, 32))}, tmp_path / "few.pth")
    torch.save({"trainable_linearlayer": _Trap()}, tmp_path / "pickled.pth")
    for name, message in (
        ("wide.pth", r"wide\.pth.*fc\.2\.weight: expected \(24, 32\), got \(24, 48\).*Choose"),
        ("few.pth", "expected 4 layers"),
        ("pickled.pth", r"pickled\.pth: weights cannot be read"),
        ("absent.pth", r"absent\.pth"),
    ):
        with pytest.raises(WeightsError, match=message):
            create_extractor(replace(spec, linear_layers=str(tmp_path / name)))
    with pytest.raises(WeightsError, match="sha256"):
        create_extractor(replace(spec, linear_layers_sha256="00"))
    assert not (tmp_path / "trap").exists()


def test_linear_layers_of_ours_say_what_they_were_trained_on(spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    projection = Projection((32,) * 4, 24)
    projection.load_state_dict(linear_state())
    base = create_extractor(spec)
    write_projection(projection, path, manifest(spec, base.weights_sha256))
    again, _ = read_projection(path, (32,) * 4, 24)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in read_state(path)[0].items())
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    one, two = (
        base.extract([picture(50, 50)]),
        create_extractor(replace(spec, linear_layers=str(path))).extract([picture(50, 50)]),
    )
    assert one.joint is not None
    assert two.joint is not None
    assert torch.equal(one.joint.layers[2], two.joint.layers[2])
    for change, message in (
        ({"activation": "quick_gelu"}, "activation quick_gelu, got gelu"),
        ({"layers": (3, 6, 9, 11)}, "layers"),
    ):
        with pytest.raises(WeightsError, match=message):
            create_extractor(replace(spec, linear_layers=str(path), **change))


def test_linear_layers_learn_from_tokens_and_text_alone(spec: ModelSpec) -> None:
    detector = Detector(create_extractor(spec))
    assert isinstance(detector.extractor, ClipExtractor)
    torch.manual_seed(0)
    projection = Projection(detector.extractor.widths, detector.extractor.joint_width)
    maps, _ = detector.extractor.tokens(squash([picture(50, 50)], 112))
    mapped = projection([own.flatten(2).mT for own in maps])
    sum((tokens @ detector.text("bottle").T).sum() for tokens in mapped).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in projection.parameters())
    assert not any(parameter.requires_grad for parameter in detector.extractor.projection.parameters())  # type: ignore[union-attr]


# zero-shot


def test_prompts_are_states_in_templates() -> None:
    normal, abnormal = prompts(" metal {nut} ")
    assert (len(normal), len(abnormal)) == (7 * 35, 5 * 35)
    assert normal[0] == "a bad photo of a metal {nut}."
    assert "there is a metal {nut} with flaw in the scene." in abnormal
    with pytest.raises(ModelError, match="Name the object"):
        prompts("  ")


def test_zero_shot_is_refused_where_there_is_no_text_or_no_linear_layers(spec: ModelSpec) -> None:
    preset = tomllib.loads(resources.files("config").joinpath("models/efficientnet-lite0.toml").read_text())
    timm = Detector(TimmExtractor(TypeAdapter(ModelSpec).validate_python(preset)))
    bare = Detector(create_extractor(replace(spec, linear_layers=None)))
    for detector, reason in ((timm, "it knows no text"), (bare, "names no linear_layers")):
        with pytest.raises(ModelError, match=reason):
            detector.reference("zero_shot", object_name="bottle")
        with pytest.raises(ModelError, match="Choose a CLIP preset"):
            detector.judge([picture(50, 50)], [Reference(text=torch.zeros(2, 24))])
        bank = detector.build([picture(50, 50)], ["a"])
        assert detector.judge([picture(50, 50)], [detector.reference("few_shot", bank=bank)]).maps.max() < 1e-4


def test_a_reference_holds_what_its_mode_needs(spec: ModelSpec) -> None:
    detector = Detector(create_extractor(spec))
    with pytest.raises(ModelError, match="got neither"):
        Reference()
    for mode in ("few_shot", "both"):
        with pytest.raises(ModelError, match="Register shots"):
            detector.reference(mode, object_name="bottle")
    bank = detector.build([picture(50, 50)], ["a"])
    with pytest.raises(ModelError, match="Name the object"):
        detector.reference("both", bank=bank)
    assert detector.reference("zero_shot", bank=bank, object_name="bottle").bank is None


def test_features_joined_are_those_of_one_call(spec: ModelSpec) -> None:
    extractor = create_extractor(spec)
    one, two = picture(50, 50), picture(60, 40, 3, seed=1)
    parts, whole = join([extractor.extract([one]), extractor.extract([two])]), extractor.extract([one, two])
    assert parts.joint is not None
    assert whole.joint is not None
    gots = (*parts.layers, *parts.joint.layers, parts.joint.image)
    for got, want in zip(gots, (*whole.layers, *whole.joint.layers, whole.joint.image), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_text_over_the_places_it_takes_is_text_over_all_of_them(spec: ModelSpec) -> None:
    extractor = create_extractor(spec)
    assert isinstance(extractor, ClipExtractor)
    sentences = ["a photo of a bottle.", "there is a metal nut with defect in the scene.", "bottle"]
    want = extractor._network.encode_text(extractor._tokenizer(sentences))
    torch.testing.assert_close(extractor.encode_text(sentences), want, atol=1e-5, rtol=0)


def test_text_vectors_are_kept_on_disk_and_a_damaged_file_is_made_again(spec: ModelSpec, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    first = Detector(create_extractor(spec), folder).text("bottle")
    [kept] = folder.iterdir()
    second = Detector(create_extractor(spec), folder)
    assert isinstance(second.extractor, ClipExtractor)
    second.extractor._tokenizer = None  # read, or it fails
    assert torch.equal(second.text("bottle"), first)
    kept.write_bytes(b"half")
    torch.testing.assert_close(Detector(create_extractor(spec), folder).text("bottle"), first)
    assert len(kept.read_bytes()) > 100
    Detector(create_extractor(replace(spec, activation="quick_gelu", linear_layers=spec.linear_layers)), folder).text("bottle")
    assert len(list(folder.iterdir())) == 2
