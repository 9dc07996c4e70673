"""model/openvino.py: the same features as torch, a cache that may be lost or damaged, and nothing told to anybody."""

import io
import logging
import subprocess
import sys
import textwrap
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from daemon.presets import load_preset
from model.detector import Detector
from model.errors import ConversionError, ModelError
from model.features import FeatureExtractor, TimmExtractor, create_extractor
from model.openvino import TOLERANCE, OpenVinoExtractor
from model.spec import ModelSpec
from tests.tiny_clip import clip_state, tiny_spec


def noise(height: int, width: int, *channels: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def drawn(height: int, width: int) -> NDArray[np.uint8]:
    canvas = np.full((height, width, 3), (180, 170, 160), np.uint8)
    cv2.circle(canvas, (width // 2, height // 2), min(height, width) // 3, (60, 80, 200), -1)
    cv2.line(canvas, (3, 5), (width - 9, height - 4), (20, 250, 90), 3)
    return canvas


PICTURES = [noise(256, 256), noise(70, 333, 3), drawn(480, 640), drawn(90, 60), np.zeros((300, 300), np.uint8)]


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return load_preset("efficientnet-lite0", Path())


@pytest.fixture(scope="module")
def reference(spec: ModelSpec) -> TimmExtractor:
    return TimmExtractor(spec)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "cache"


@pytest.fixture(scope="module")
def extractor(spec: ModelSpec, cache: Path) -> FeatureExtractor:
    return create_extractor(spec, "cpu", cache=cache)


def small(folder: Path, backbone: str = "resnet18") -> ModelSpec:
    """A backbone that converts quickly, with drawn weights."""
    path = folder / f"{backbone}.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(backbone, pretrained=False).state_dict(), path)
    return ModelSpec(
        name=backbone, family="timm", backbone=backbone, weights=str(path), layers=(1,), image_size=64,
        mean=(0.5, 0.4, 0.5), std=(0.2, 0.3, 0.2), neighbourhood=3,
    )  # fmt: skip


def test_is_the_default_for_timm_on_a_cpu(extractor: FeatureExtractor, reference: TimmExtractor) -> None:
    assert isinstance(extractor, OpenVinoExtractor)
    assert extractor.weights_sha256 == reference.weights_sha256
    assert Detector(extractor).fingerprint == Detector(reference).fingerprint


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: str(picture.shape))
def test_features_are_those_of_torch_within_the_tolerance(
    extractor: FeatureExtractor, reference: TimmExtractor, picture: NDArray[np.uint8]
) -> None:
    got, want = extractor.extract([picture]), reference.extract([picture])
    assert got.grids == want.grids
    for one, two in zip(got.layers, want.layers, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, atol=TOLERANCE, rtol=0)


def test_a_bank_of_torch_serves_and_maps_differ_by_less_than_any_threshold_is_told_with(
    extractor: FeatureExtractor, reference: TimmExtractor
) -> None:
    shots = [drawn(200 + n, 200) for n in range(3)]
    bank = Detector(reference).build(shots, ["a", "b", "c"])
    parts = [drawn(210, 190), noise(100, 100)]
    got, want = Detector(extractor).judge(parts, [bank] * 2), Detector(reference).judge(parts, [bank] * 2)
    np.testing.assert_allclose(got.maps, want.maps, atol=1e-4, rtol=0)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_a_batch_of_any_size_equals_its_pictures_alone(extractor: FeatureExtractor, count: int) -> None:
    pictures = [noise(90 + 10 * n, 120, seed=n) for n in range(count)]
    together = extractor.extract(pictures)
    for number, one in enumerate(pictures):
        for got, want in zip(together.select([number]).layers, extractor.extract([one]).layers, strict=True):
            torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_results_stay_when_the_next_pictures_come(extractor: FeatureExtractor) -> None:
    first = extractor.extract([PICTURES[0]])
    kept = [layer.clone() for layer in first.layers]
    extractor.extract(PICTURES[1:])
    assert all(torch.equal(one, two) for one, two in zip(first.layers, kept, strict=True))


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.float32), np.zeros((8, 8, 4), np.uint8), None])
def test_what_is_not_a_picture_is_refused(extractor: FeatureExtractor, wrong: NDArray[np.uint8] | None) -> None:
    with pytest.raises(ModelError, match="extract: expected"):
        extractor.extract([] if wrong is None else [wrong])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, ModelSpec, Path]:
    """Two specs of one small network, and a cache folder that has both encoders."""
    folder = tmp_path_factory.mktemp("small")
    one = small(folder)
    two = replace(one, neighbourhood=1)
    for spec in (one, two):
        OpenVinoExtractor(spec, 2, folder / "cache")
    return one, two, folder / "cache"


def test_the_next_start_reads_what_was_converted(
    kept: tuple[ModelSpec, ModelSpec, Path], caplog: pytest.LogCaptureFixture
) -> None:
    one, two, cache = kept
    files = sorted(cache.iterdir())
    written = [file.stat().st_mtime_ns for file in files]
    assert len(files) == 2
    with caplog.at_level(logging.INFO, "model.openvino"):
        got = [OpenVinoExtractor(spec, 2, cache).extract(PICTURES[:1]).layers[0] for spec in (one, two)]
    assert ["read from the cache" in line for line in caplog.messages] == [True, True]
    assert [file.stat().st_mtime_ns for file in sorted(cache.iterdir())] == written
    for layer, spec in zip(got, (one, two), strict=True):
        torch.testing.assert_close(layer, TimmExtractor(spec).extract(PICTURES[:1]).layers[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("damage", ["a bit", "another network"])
def test_a_damaged_cache_file_is_told_and_converted_again(
    kept: tuple[ModelSpec, ModelSpec, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    spec, _, cache = kept
    first, second = sorted(cache.iterdir())
    for file, other in ((first, second), (second, first)):
        if damage == "a bit":
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
        else:
            data = bytearray(_with_expected_of(other, file))
        (tmp_path / file.name).write_bytes(data)
    again = OpenVinoExtractor(spec, 2, tmp_path)
    assert caplog.text.count(": damaged") == 1
    want = TimmExtractor(spec).extract(PICTURES[:2]).layers[0]
    torch.testing.assert_close(again.extract(PICTURES[:2]).layers[0], want, atol=TOLERANCE, rtol=0)
    caplog.clear()
    OpenVinoExtractor(spec, 2, tmp_path)
    assert "damaged" not in caplog.text


def _with_expected_of(network: Path, expected: Path) -> bytes:
    """A sound archive, as if a name's hash had lied."""
    packed = io.BytesIO()
    with zipfile.ZipFile(network) as one, zipfile.ZipFile(expected) as two, zipfile.ZipFile(packed, "w") as archive:
        for name in one.namelist():
            archive.writestr(name, (two if name.startswith("expected") else one).read(name))
    return packed.getvalue()


def test_callers_at_the_same_time_get_the_features_of_their_own_pictures(kept: tuple[ModelSpec, ModelSpec, Path]) -> None:
    spec, _, cache = kept
    extractor = create_extractor(spec, "cpu", 2, cache, callers=2)
    assert extractor.callers == 2
    want = [TimmExtractor(spec).extract([picture]).layers[0] for picture in PICTURES]
    with ThreadPoolExecutor(2) as pool:
        numbers = [number % len(PICTURES) for number in range(40)]
        for number, got in zip(numbers, pool.map(lambda n: extractor.extract([PICTURES[n]]), numbers), strict=True):
            torch.testing.assert_close(got.layers[0], want[number], atol=TOLERANCE, rtol=0)


def test_torch_takes_one_caller(kept: tuple[ModelSpec, ModelSpec, Path]) -> None:
    assert create_extractor(kept[0], runtime="torch", callers=2).callers == 1


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file")
    assert len(OpenVinoExtractor(small(tmp_path), 1, tmp_path / "cache").extract(PICTURES[:1])) == 1
    assert "cannot be kept" in caplog.text


def test_a_transformer_runs(tmp_path: Path) -> None:
    spec = small(tmp_path, "vit_tiny_patch16_224")
    got, want = (make(spec).extract(PICTURES[:2]) for make in (OpenVinoExtractor, TimmExtractor))
    assert got.grids == want.grids
    torch.testing.assert_close(got.layers[0], want.layers[0], atol=TOLERANCE, rtol=0)


class _Sorted(nn.Module):
    """Does what no compiler takes: its path depends on the values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


@pytest.fixture
def exotic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A backbone with a step that cannot be converted."""
    spec = small(tmp_path)
    create = timm.create_model

    def with_step(name: str, *, pretrained: bool) -> nn.Module:
        network: nn.Module = create(name, pretrained=pretrained)
        network.act1 = nn.Sequential(nn.ReLU(), _Sorted())
        return network

    monkeypatch.setattr(timm, "create_model", with_step)
    return spec


def test_what_cannot_be_converted_runs_in_torch_and_says_so(exotic: ModelSpec, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(create_extractor(exotic), TimmExtractor)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("model")]
    assert "resnet18: runs in torch" in line
    with pytest.raises(ConversionError, match=r"resnet18.*Use runtime torch"):
        create_extractor(exotic, runtime="openvino")


def test_runtime_openvino_is_refused_where_it_does_not_apply(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a timm model on device cpu, got open_clip"):
        create_extractor(tiny_spec(tmp_path, clip_state(), None), runtime="openvino")


def test_runtime_torch_is_torch(spec: ModelSpec) -> None:
    assert isinstance(create_extractor(spec, runtime="torch"), TimmExtractor)


_IN_ITS_OWN_PROCESS = """
    import socket, sys, time
    tried = []
    class Blocked(socket.socket):
        def connect(self, address):
            tried.append(address)
            raise OSError("blocked")
        connect_ex = sendto = connect
    socket.socket = Blocked
    def look_up(*args, **kwargs):
        tried.append(args)
        raise OSError("blocked")
    socket.getaddrinfo = socket.create_connection = look_up
    from pathlib import Path
    import numpy as np, torch
    from daemon.presets import load_preset
    from model.features import create_extractor
    extractor = create_extractor(load_preset("efficientnet-lite0", Path()), threads=1, cache=Path(sys.argv[1]))
    print(type(extractor).__name__)
    began = time.perf_counter(), time.process_time()
    for _ in range(10):
        extractor.extract([np.zeros((50, 50), np.uint8)] * 3)
    cores = (time.process_time() - began[1]) / (time.perf_counter() - began[0])
    telling = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module is not None]
    print("tried", tried, "telling", telling)
    print(cores)
"""


def run_alone(home: Path, *argument: str) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(_IN_ITS_OWN_PROCESS), *argument]
    # CI unset: there the tools tell nothing of their own accord.
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_nothing_is_sent_or_kept_about_us_and_one_thread_is_one_core(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    # Without a cache, so that the conversion is watched as well.
    out = run_alone(home, str(tmp_path / "cache"))
    runtime, told, cores = out.splitlines()
    assert runtime == "OpenVinoExtractor"
    assert told == "tried [] telling []"
    assert float(cores) < 1.2
    # OpenVINO's tools keep an id of their user there.
    assert not (home / "intel").exists()
