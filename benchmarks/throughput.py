"""The default preset on a CPU: frames a second with bank search and finishing, and where the time goes, OpenVINO and torch.

python -m benchmarks.throughput [--threads 2] [--repeats 40] [--shots 12] [--rows 16384]

What the inspector and the finisher do to a frame: resize, encoder, bank search, maps; then the score, and for a frame that
fails regions and mask. Every other frame fails. Cameras, ledger and broker: see benchmarks.overhead.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from daemon.presets import load_preset
from model.bank import build_bank
from model.calibration import calibrate, mirror
from model.detector import Detector, Judgement, Reference
from model.features import Runtime, create_extractor, to_square
from model.regions import encode_mask_png, find_regions
from model.spec import BANK_ROWS

TARGET_PER_S = 100.0
BATCHES = (1, 2, 4, 8)
SIDE = 300


def part(number: int, *, defect: bool = False) -> NDArray[np.uint8]:
    """A grey picture of a round part with its own noise, 300 x 300."""
    rng = np.random.default_rng(number)
    canvas = np.full((SIDE, SIDE), 90, np.uint8)
    cv2.circle(canvas, (SIDE // 2 + number % 3, SIDE // 2), SIDE // 3, 170, -1)
    if defect:
        cv2.line(canvas, (120, 110), (180, 190), 20, 5)
    noisy: NDArray[np.uint8] = np.clip(canvas + rng.normal(0, 6, canvas.shape), 0, 255).astype(np.uint8)
    return noisy


def finish(judged: Judgement, threshold: float) -> None:
    """As the finisher does it."""
    for anomaly_map, score in zip(judged.maps, judged.scores, strict=True):
        if float(score) > threshold:
            mask, _ = find_regions(anomaly_map, SIDE, SIDE, threshold)
            encode_mask_png(mask)


def frame_s(detector: Detector, reference: Reference, pictures: list[NDArray[np.uint8]], threshold: float) -> dict[str, float]:
    """Seconds of each stage for one batch."""
    marks = [time.perf_counter()]
    to_square(pictures, detector.extractor.spec.image_size)
    marks.append(time.perf_counter())
    features = detector.encode(pictures)
    marks.append(time.perf_counter())
    judged = detector.judge_features(features, [reference] * len(pictures))
    marks.append(time.perf_counter())
    finish(judged, threshold)
    marks.append(time.perf_counter())
    resize, encode, search, finishing = np.diff(marks)
    # `encode` resizes as well; the lone resize before it is only there to be told apart.
    return {"resize": resize, "encoder": encode - resize, "bank search": search, "finish": finishing}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.throughput")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--shots", type=int, default=12)
    parser.add_argument("--rows", type=int, default=BANK_ROWS)
    options = parser.parse_args()
    spec = load_preset("efficientnet-lite0", Path())
    detectors: dict[Runtime, Detector] = {}
    with tempfile.TemporaryDirectory() as name:
        runtimes: tuple[Runtime, ...] = ("torch", "openvino")
        for runtime in runtimes:
            create = partial(create_extractor, spec, "cpu", options.threads, Path(name), runtime)
            for how in ("first start", "next start")[: 2 if runtime == "openvino" else 1]:
                started_s = time.perf_counter()
                detectors[runtime] = Detector(create())
                print(f"{runtime}, {how}: encoder ready after {time.perf_counter() - started_s:.1f} s")
    shots = [part(number) for number in range(options.shots)]
    features = detectors["torch"].encode(shots)
    names = [str(number) for number in range(options.shots)]
    bank = build_bank(features, fingerprint=detectors["torch"].fingerprint, shots=names, max_rows=options.rows)
    mirrored = [detectors["torch"].encode([mirror(shot)]) for shot in shots]
    calibration = calibrate(detectors["torch"], features, mirrored, Reference(bank))
    reference = calibration.apply(Reference(bank))
    rows = " and ".join(f"{len(layer):,} x {layer.shape[1]}" for layer in bank.layers)
    frames = [part(100 + number, defect=number % 2 == 1) for number in range(max(BATCHES))]
    scores = detectors["torch"].judge(frames, [reference] * len(frames)).scores
    threshold = float((scores[::2].max() + scores[1::2].min()) / 2)
    print(f"{spec.name}, {spec.image_size} px, bank {rows}, {options.threads} threads, every other frame fails:")
    took: dict[tuple[Runtime, int], list[dict[str, float]]] = {(runtime, batch): [] for runtime in detectors for batch in BATCHES}
    with torch.inference_mode():
        for _ in range(options.repeats + 1):
            for (runtime, batch), stages in took.items():
                stages.append(frame_s(detectors[runtime], reference, frames[:batch], threshold))
    for (runtime, batch), stages in took.items():
        # Without the first, which warms up.
        medians = {stage: statistics.median(one[stage] for one in stages[1:]) for stage in stages[0]}
        total_s = sum(medians.values())
        each = "   ".join(f"{stage} {value / batch * 1e3:5.1f} ms" for stage, value in medians.items())
        verdict = "" if runtime == "torch" else f"   target {TARGET_PER_S:.0f}: {batch / total_s / TARGET_PER_S:.2f}"
        share = medians["encoder"] / total_s
        print(f"  {runtime:<8} batch {batch}: {batch / total_s:6.1f} frames/s   {each}   encoder {share:4.0%}{verdict}")


if __name__ == "__main__":
    main()
