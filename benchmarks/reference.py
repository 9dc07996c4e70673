"""Our detector against the published procedure (arXiv 2305.17382), written down plainly: ratios measured side by side.

python -m benchmarks.reference [--models tiny ViT-B-16 ViT-L-14-336] [--device cuda] [--repeats 5]

The procedure is the authors' (their public repository, read as facts): one picture at a time; the encoder runs once for the
zero-shot half and once more for the few-shot half, keeping every block's attention weights; the bank is searched on the
host with scikit-learn's pairwise cosine. Weights and linear layers are random: speed does not depend on them. The two must
give the same maps in fp32 before anything is timed.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from numpy.typing import NDArray
from sklearn.metrics import pairwise
from torch import Tensor, nn

from model.clip import ClipExtractor, squash
from model.detector import Detector, Reference
from model.spec import ModelSpec

SHOTS = 4
TARGETS = {"cpu": {1: 3.0, 8: 5.0}, "cuda": {1: 20.0, 8: 20.0}}
TARGET_PEAK = 0.5
TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 56, "layers": 12, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """One model to time. image_size: 112 px for the golden data's tiny one; the presets' own where a CPU can wait for it."""

    backbone: str
    layers: tuple[int, ...]
    image_size: int


CASES = {
    "tiny": Case("tiny", (3, 6, 9, 12), 112),
    "ViT-B-16": Case("ViT-B-16", (3, 6, 9, 12), 224),
    "ViT-L-14-336": Case("ViT-L-14-336", (6, 12, 18, 24), 336),
}


class Published:
    """The published procedure, for a ViT of open_clip."""

    def __init__(self, extractor: ClipExtractor, text: Tensor) -> None:
        self.extractor = extractor
        self.visual: Any = extractor._network.visual
        self.text = text.T
        assert extractor.projection is not None
        self.projection = extractor.projection
        self.memory: list[NDArray[np.float32]] = []

    def teach(self, shots: Sequence[Pixels]) -> None:
        """The few-shot memory: the shots' raw tokens of each layer."""
        tokens = [[layer[0].cpu().numpy() for layer in self.encode(shot)[1]] for shot in shots]
        self.memory = [np.concatenate(layer) for layer in zip(*tokens, strict=True)]

    @torch.no_grad()
    def encode(self, picture: Pixels) -> tuple[Tensor, list[Tensor]]:
        """Image feature and, of each tapped layer, tokens without the class token; attention weights are computed and kept."""
        spec, visual = self.extractor.spec, self.visual
        x = visual.conv1(self.extractor._normalised(squash([picture], spec.image_size)).to(self.extractor._dtype))
        x = x.reshape(1, x.shape[1], -1).permute(0, 2, 1)
        x = torch.cat([visual.class_embedding.to(x.dtype).expand(1, 1, -1), x], dim=1)
        x = visual.ln_pre(x + visual.positional_embedding.to(x.dtype))
        kept, attentions = [], []
        for number, block in enumerate(visual.transformer.resblocks, 1):
            normed = block.ln_1(x)
            attended, weights = block.attn(normed, normed, normed, need_weights=True, average_attn_weights=False)
            attentions.append(weights)
            x = x + block.ls_1(attended)
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
            if number in spec.layers:
                kept.append(x[:, 1:].float())
        return (visual.ln_post(x[:, 0]) @ visual.proj).float(), kept

    @torch.no_grad()
    def judge(self, picture: Pixels) -> NDArray[np.float32]:
        """The anomaly map, S x S: zero-shot map and few-shot map added."""
        size = self.extractor.spec.image_size
        _, tokens = self.encode(picture)
        maps = []
        for layer, mapped in zip(tokens, self.projection(tokens), strict=True):
            side = round(layer.shape[1] ** 0.5)
            logits = (100 * mapped @ self.text).permute(0, 2, 1).view(1, 2, side, side)
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
            maps.append(logits.softmax(1)[0, 1].cpu().numpy())
        _, tokens = self.encode(picture)
        for layer, memory in zip(tokens, self.memory, strict=True):
            side = round(layer.shape[1] ** 0.5)
            cosines = pairwise.cosine_similarity(memory, layer[0].cpu().numpy())
            distances = torch.from_numpy(np.min(1 - cosines, axis=0)).view(1, 1, side, side)
            maps.append(F.interpolate(distances, size=size, mode="bilinear", align_corners=True)[0, 0].numpy())
        total: NDArray[np.float32] = np.sum(maps, axis=0, dtype=np.float32)
        return total


def _one_by_one(published: Published, pictures: Sequence[Pixels]) -> None:
    for picture in pictures:
        published.judge(picture)


def prepare(case: Case, folder: Path) -> ModelSpec:
    """Random weights and linear layers as files, and the preset that names them."""
    torch.manual_seed(0)
    backbone = case.backbone
    if backbone == "tiny":
        config, backbone = TINY, str(folder / "tiny.json")
        Path(backbone).write_text(json.dumps(TINY))
    else:
        config = open_clip.get_model_config(backbone)
        assert config is not None
    network = open_clip.CLIP(**{key: value for key, value in config.items() if key != "quick_gelu"})
    weights, linear = folder / f"{case.backbone}.safetensors", folder / f"{case.backbone}.pth"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
    layers = [nn.Linear(config["vision_cfg"]["width"], config["embed_dim"]) for _ in case.layers]
    state = {f"fc.{number}.{name}": part for number, layer in enumerate(layers) for name, part in layer.state_dict().items()}
    torch.save({"trainable_linearlayer": state}, linear)
    return ModelSpec(
        name=case.backbone,
        family="open_clip",
        backbone=backbone,
        weights=str(weights),
        layers=case.layers,
        image_size=case.image_size,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        neighbourhood=1,
        activation="gelu",
        linear_layers=str(linear),
    )


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, the device's work included."""
    started_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


def alternately(works: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each, measured in turn so that a busy machine disturbs all alike."""
    for work in works.values():
        seconds(work, device)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    return {name: statistics.median(values) for name, values in times.items()}


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The device's measured peak: floating point operations per second of its best square product among three sizes."""
    best = 0.0
    for side in (2048, 4096, 8192) if device.type == "cuda" else (1024, 2048):
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

        took_s = alternately({"matmul": partial(torch.matmul, left, right)}, 9, device)["matmul"]
        best = max(best, 2 * side**3 / took_s)
    return best


def encoder_flops(extractor: ClipExtractor) -> float:
    """Of one picture through the image encoder's transformer and stem: products only, a multiply and an add as two."""
    visual: Any = extractor._network.visual
    tokens = visual.grid_size[0] * visual.grid_size[1] + 1
    width = visual.transformer.width
    depth = extractor.spec.layers[-1]
    per_block = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width
    return float(depth * per_block + 2 * (tokens - 1) * visual.conv1.weight.numel())


def compare(spec: ModelSpec, device: torch.device, repeats: int) -> None:
    """Print one model's figures."""
    rng = np.random.default_rng(0)
    shots, parts = ([rng.integers(0, 256, (300, 400, 3), dtype=np.uint8) for _ in range(count)] for count in (SHOTS, 8))
    precisions: list[Any] = ["fp32", "bf16"]
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        precisions = ["fp32"]
        print("this CPU has no bf16 products (avx512_bf16): not measured")
    detectors, references = {}, {}
    for precision in precisions:
        detector = Detector(ClipExtractor(replace(spec, precision=precision), device))
        bank = detector.build(shots, [str(number) for number in range(SHOTS)])
        detectors[precision], references[precision] = detector, Reference(bank, detector.text("gear"))
    extractor = detectors["fp32"].extractor
    assert isinstance(extractor, ClipExtractor)
    text = references["fp32"].text
    assert text is not None
    published = Published(extractor, text)
    published.teach(shots)
    difference = float(np.abs(detectors["fp32"].judge(parts[:1], [references["fp32"]]).maps[0] - published.judge(parts[0])).max())
    print(f"{spec.name}, {spec.image_size} px, {SHOTS} shots, {device}: maps differ by at most {difference:.1e} in fp32")
    assert difference < 1e-3, "not the same procedure: nothing to compare"

    for batch in (1, 8):
        some = parts[:batch]
        works: dict[str, Callable[[], object]] = {"published": partial(_one_by_one, published, some)}
        for precision in precisions:
            detector, reference = detectors[precision], references[precision]
            works[precision] = partial(detector.judge, some, [reference] * batch)
            works[f"{precision} encoder"] = partial(detector.encode, some)
        took = alternately(works, repeats, device)
        target = TARGETS[device.type][batch]
        counted = "fp32" if device.type == "cpu" else "bf16"
        print(f"  batch {batch}: published {took['published'] / batch * 1e3:9.1f} ms a picture")
        for precision in precisions:
            ratio = took["published"] / took[precision]
            against = f"   target {target:.0f} x   {'ok' if ratio >= target else 'MISSED'}" if precision == counted else ""
            share = took[f"{precision} encoder"] / took[precision]
            mine = took[precision] / batch * 1e3
            print(f"    ours, {precision}: {mine:9.1f} ms a picture   encoder {share:4.0%}   {ratio:5.1f} x{against}")
            if batch == 8:
                dtype = torch.float32 if precision == "fp32" else torch.bfloat16
                peak = matmul_flops(device, dtype)
                reached = encoder_flops(extractor) * batch / took[f"{precision} encoder"] / peak
                wanted = f" (target {TARGET_PEAK:.0%})" if (device.type, precision) == ("cuda", "bf16") else ""
                print(f"      encoder: {reached:.0%} of the measured matmul peak, {peak / 1e12:.2f} TFLOP/s{wanted}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.reference")
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image-size", type=int, help="instead of each case's own; the presets' are 512 and 518")
    options = parser.parse_args()
    for name in options.models:
        case = CASES[name] if options.image_size is None else replace(CASES[name], image_size=options.image_size)
        with tempfile.TemporaryDirectory() as folder:
            compare(prepare(case, Path(folder)), torch.device(options.device), options.repeats)


if __name__ == "__main__":
    main()
