"""`aprilcam cameras` where there is no camera, no aravis, and with pylon's emulator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def cameras(*words: str, debian: Path | None = None, emulated: int = 2) -> subprocess.CompletedProcess[str]:
    """`aprilcam cameras WORDS`; `debian`: where Debian's Python packages are said to be."""
    program = (
        "import sys; from pathlib import Path; from connectors.cameras import aravis_nodes; from daemon.cli import main\n"
        f"aravis_nodes.DEBIAN = Path({str(debian)!r}) if {debian is not None} else aravis_nodes.DEBIAN\n"
        "sys.argv = ['aprilcam', 'cameras', *sys.argv[1:]]; main()"
    )
    environment = {**os.environ, "PYLON_CAMEMU": str(emulated)}
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment, timeout=60)


def test_emulated_cameras_are_listed_without_aravis_which_is_told(tmp_path: Path) -> None:
    done = cameras("--json", debian=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    row = {"driver": "pylon", "name": "", "model": "Emulation", "address": "", "access": "free"}
    assert answer["cameras"] == [{**row, "serial": "0815-0000"}, {**row, "serial": "0815-0001"}]
    [note] = answer["notes"]
    assert note.startswith('driver "aravis" needs Debian\'s GObject introspection: apt-get install gir1.2-aravis-0.8 python3-gi')
    assert f"{tmp_path}/gi is not there" in note
    table = cameras(debian=tmp_path)
    assert table.returncode == 0
    for words in ("0815-0000", "0815-0001", "Emulation", "free", "note: driver"):
        assert words in table.stdout


def test_debians_package_for_another_python_is_told(tmp_path: Path) -> None:
    (tmp_path / "gi").mkdir()
    (tmp_path / "gi" / "__init__.py").touch()
    (tmp_path / "gi" / "_gi.cpython-39-x86_64-linux-gnu.so").touch()
    [note] = json.loads(cameras("--json", debian=tmp_path).stdout)["notes"]
    ours = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
    assert f"Debian's python3-gi is made for cpython-39-x86_64-linux-gnu, and this is {ours}" in note
    assert "a virtual environment of Debian's own python3" in note


def test_no_camera_at_all_is_no_error(tmp_path: Path) -> None:
    done = cameras(debian=tmp_path, emulated=0)
    assert done.returncode == 0
    assert done.stdout.startswith("No camera is seen. Check power, cable")


def test_features_of_a_camera_have_values_and_ranges() -> None:
    done = cameras("--features", "0815-0001", "--json")
    assert done.returncode == 0
    features = {row["name"]: row for row in json.loads(done.stdout)["features"]}
    assert features["Width"] == {"name": "Width", "value": "1024", "takes": "1 to 4096", "writable": True}
    assert "Mono8" in features["PixelFormat"]["takes"]
    assert not features["DeviceVendorName"]["writable"]
    assert "TriggerSoftware" not in features
    table = cameras("--features", "0815-0001").stdout
    [height] = [line.split() for line in table.splitlines() if line.strip().startswith("Height ")]
    assert height == ["Height", "1040", "1", "to", "4096"]


def test_features_of_a_camera_nobody_sees(tmp_path: Path) -> None:
    done = cameras("--features", "123", debian=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("aprilcam: No camera with serial 123 is seen. `aprilcam cameras` lists those that are")
    assert "aravis was not asked" in done.stderr


def test_aravis_is_loaded_without_a_change_of_the_module_path() -> None:
    program = (
        "import sys; before = list(sys.path)\nfrom config.errors import CameraError\n"
        "from connectors.cameras.aravis_nodes import aravis_library\n"
        "try:\n    aravis, _ = aravis_library(); print(aravis.Camera.__name__)\nexcept CameraError as error:\n    print(error)\n"
        "assert sys.path == before"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    if done.stdout.startswith("driver"):
        pytest.skip(done.stdout.strip())
    assert done.stdout == "Camera\n"
