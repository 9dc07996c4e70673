"""Lays out the demo's pictures in build/demo/: `shots/` (good parts to learn from) and `line/` (what the camera plays)."""

import json
import random
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "demo"
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
MOST_SHOTS = 12


@dataclass(frozen=True)
class Part:
    """One picture of the line, and whether it is known to be defective."""

    source: Path
    defective: bool


def solar_cells() -> tuple[list[Path], list[Part]]:
    """Reference shots and line of the lists beside this file (README.md here says how they were chosen)."""
    package = find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise SystemExit("The demo's pictures are in the PyPI package elpv-dataset: pip install -c constraints.txt '.[demo]'")
    images = Path(package.origin).parent / "data" / "images"
    shots = [images / name for name in (HERE / "shots.txt").read_text().split()]
    line = []
    for row in (HERE / "line.txt").read_text().splitlines():
        name, label = row.split()
        line.append(Part(images / name, label == "defective"))
    return shots, line


def own_pictures(folder: Path) -> tuple[list[Path], list[Part]]:
    """Shots and line of a folder in MVTec AD's layout: `train/good` and `test/<kind>`, where kind `good` is good."""
    shots = _pictures(folder / "train" / "good")[:MOST_SHOTS]
    kinds = sorted(path for path in (folder / "test").glob("*") if path.is_dir())
    line = [Part(picture, kind.name != "good") for kind in kinds for picture in _pictures(kind)]
    if len(shots) < 2 or not line:
        raise SystemExit(
            f"{folder}: needs pictures of good parts in train/good (at least 2, {len(shots)} found) and parts to inspect in "
            f"test/<kind> ({len(line)} found), as in MVTec AD."
        )
    random.Random(0).shuffle(line)
    return shots, line


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)


def lay_out(folder: Path | None) -> list[Part]:
    """Fill build/demo/shots and build/demo/line; gives the line. Other pictures than last time start with an empty state."""
    shots, line = solar_cells() if folder is None else own_pictures(folder.resolve())
    wanted = json.dumps([[str(path) for path in shots], [str(part.source) for part in line]])
    stamp = BUILD / "pictures.json"
    if stamp.is_file() and stamp.read_text() == wanted:
        return line
    shutil.rmtree(BUILD, ignore_errors=True)
    for name, sources in (("shots", shots), ("line", [part.source for part in line])):
        (BUILD / name).mkdir(parents=True)
        for index, source in enumerate(sources):
            (BUILD / name / f"{index:04d}-{source.name}").symlink_to(source)
    stamp.write_text(wanted)
    return line
