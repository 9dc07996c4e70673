"""connectors/nvml.py: without a GPU, and through the real nvidia-ml-py against a library with NVML's binary interface."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

READ = """
import json, sys
if sys.argv[1] == "without the package":
    sys.modules["pynvml"] = None
from connectors.nvml import Gpus
gpus = Gpus()
told = [[own.name, *labels, value] for own, labels, value in gpus.readings()]
told += [["again"]] + [[own.name, *labels, value] for own, labels, value in gpus.readings()]
gpus.close()
told += [own.name for own, *_ in gpus.readings()]
print(json.dumps(told))
"""


def read(case: str, libraries: Path) -> list[list[object]]:
    """What two scrapes tell in a process of its own: a process loads the library once."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", READ, case], env=environment, capture_output=True, text=True, check=True)
    told: list[list[object]] = json.loads(done.stdout)
    return told


def test_without_the_package_there_is_nothing(tmp_path: Path) -> None:
    assert read("without the package", tmp_path) == [["again"]]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_gpus_tell_memory_and_load_and_what_one_does_not_tell_is_absent(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    source = Path(__file__).parent / "nvml.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", source], check=True)
    gib = 1 << 30
    once: list[list[object]] = [
        ["aprilcam_device_memory_bytes", "0", 1.0 * gib],
        ["aprilcam_device_memory_limit_bytes", "0", 80.0 * gib],
        ["aprilcam_device_utilization_ratio", "0", 0.25],
        ["aprilcam_device_memory_bytes", "1", 2.0 * gib],
        ["aprilcam_device_memory_limit_bytes", "1", 80.0 * gib],
    ]
    assert read("with a GPU", tmp_path) == [*once, ["again"], *once]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_driver_that_does_not_answer_leaves_them_out(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    broken = tmp_path / "broken.c"
    broken.write_text('int nvmlInitWithFlags(int f) { return 9; } const char *nvmlErrorString(int e) { return "no"; }')
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", broken], check=True)
    assert read("without a driver", tmp_path) == [["again"]]
