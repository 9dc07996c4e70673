"""`make demo-sheet`: every picture of the demo with its anomaly map, mask and verdict, on one sheet in build/demo/."""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from config.schema import load_config
from connectors.cameras.pictures import list_pictures, read_picture
from daemon.presets import load_preset
from daemon.shots import crop, pixel_hash
from demo.pictures import BUILD, Part, lay_out
from demo.run import CONFIG
from model.bank import build_bank
from model.calibration import Calibration, calibrate, mirror
from model.detector import Detector, Reference
from model.features import create_extractor
from model.regions import find_regions

TILE = 150
COLUMNS = 5
GREEN, RED, WHITE = (80, 200, 80), (60, 60, 235), (235, 235, 235)


def _tile(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR if pixels.ndim == 2 else cv2.COLOR_RGB2BGR)
    return np.asarray(cv2.resize(picture, (TILE, TILE), interpolation=cv2.INTER_AREA), np.uint8)


def _row(
    part: Part, pixels: NDArray[np.uint8], anomaly_map: NDArray[np.float32], score: float, calibration: Calibration
) -> NDArray[np.uint8]:
    """Input, anomaly map (black to white at twice the threshold), mask outline; a caption below."""
    height, width = pixels.shape[:2]
    threshold = calibration.threshold
    verdict = "pass" if score <= threshold else "FAIL"
    heat = np.clip(anomaly_map / (2 * threshold) * 255, 0, 255).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    if score > threshold:
        mask, _ = find_regions(anomaly_map, width, height, calibration.pixel_threshold)
    marked = _tile(pixels)
    outline = cv2.resize(mask.astype(np.uint8), (TILE, TILE), interpolation=cv2.INTER_NEAREST)
    contours, _hierarchy = cv2.findContours(outline, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(marked, contours, -1, RED, 2)
    tiles = np.hstack([_tile(pixels), cv2.applyColorMap(cv2.resize(heat, (TILE, TILE)), cv2.COLORMAP_INFERNO), marked])
    caption = np.full((24, tiles.shape[1], 3), 30, np.uint8)
    truth = "defective" if part.defective else "good"
    right = (verdict == "FAIL") == part.defective
    cv2.putText(caption, f"{part.source.stem} ({truth})", (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.42, WHITE, 1, cv2.LINE_AA)
    text = f"{verdict} {score:.3f}{'' if right else '  WRONG'}"
    cv2.putText(caption, text, (240, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, GREEN if right else RED, 1, cv2.LINE_AA)
    return np.vstack([tiles, caption])


def main() -> None:
    """Judge the demo's line as the daemon does, write the sheet, print the figures."""
    parser = argparse.ArgumentParser(prog="make demo-sheet")
    parser.add_argument("--pictures", type=Path, help="a folder in MVTec AD's layout, instead of the solar cells")
    line = lay_out(parser.parse_args().pictures)
    config = load_config(CONFIG)
    recipe = config.recipes[0]
    detector = Detector(create_extractor(load_preset(config.inference.preset, CONFIG.parent), config.inference.device))
    shots = [read_picture(path) for path in list_pictures(recipe.shots)] if recipe.shots is not None else []
    parts = [crop(pixels, recipe.region, "shot") for pixels in shots]
    features, mirrored = detector.encode(parts), [detector.encode([mirror(part)]) for part in parts]
    names, most = [pixel_hash(pixels) for pixels in shots], detector.extractor.spec.bank_rows
    bank = build_bank(features, fingerprint=detector.fingerprint, shots=names, max_rows=most)
    calibration = calibrate(detector, features, mirrored, Reference(bank))
    reference, threshold = calibration.apply(Reference(bank)), calibration.threshold
    rows, scores = [], []
    for part in sorted(line, key=lambda part: (part.defective, part.source.name)):
        pixels = read_picture(part.source)
        judged = detector.judge([pixels], [reference])
        score = float(judged.scores[0])
        scores.append((part.defective, score))
        rows.append(_row(part, pixels, judged.maps[0], score, calibration))
    rows += [np.zeros_like(rows[0])] * (-len(rows) % COLUMNS)
    sheet = np.vstack([np.hstack(rows[start : start + COLUMNS]) for start in range(0, len(rows), COLUMNS)])
    path = BUILD / "sheet.png"
    cv2.imwrite(str(path), sheet)
    good = [score for defective, score in scores if not defective]
    bad = [score for defective, score in scores if defective]
    print(f"threshold {threshold:.4f} from {calibration.advice}")
    if good:
        print(f"good:      {sum(score <= threshold for score in good)} of {len(good)} pass (highest {max(good):.4f})")
    if bad:
        print(f"defective: {sum(score > threshold for score in bad)} of {len(bad)} fail (lowest {min(bad):.4f})")
    print(f"sheet: {path}")


if __name__ == "__main__":
    main()
