"""The command line: `check`, and errors that end with exit 2 and one message each."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.parts import write_parts

GOOD = """
[store]
path = "state"
[http]
port = 0
[[cameras]]
name = "cam"
driver = "folder"
path = "parts"
[[recipes]]
name = "disc"
object = "metal disc"
{recipe}
[[stations]]
name = "press"
camera = "cam"
recipe = "disc"
"""


def aprilcam(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "daemon.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def write(folder: Path, recipe: str = "") -> Path:
    write_parts(folder / "parts", range(1))
    file = folder / "aprilcam.toml"
    file.write_text(GOOD.format(recipe=recipe))
    return file


def test_check_prints_what_would_run(tmp_path: Path) -> None:
    done = aprilcam("check", "--config", write(tmp_path, "[recipes.region]\nx = 1\ny = 2\nwidth = 30\nheight = 40"))
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "press",
        "disc",
        "x=1 y=2",
        "30 x 40",
        "127.0.0.1:1883, MQTT 5",
        "efficientnet-lite0 on cpu",
        "the newest frame",
    ):
        assert words in done.stdout


def test_check_tells_what_is_wrong_with_a_certificate_and_what_is_open(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("daemon")
    file = write(tmp_path)
    text = file.read_text()
    file.write_text(f'[mqtt.tls]\ncertificate_file = "{certificate}"\nkey_file = "{key}"\ncheck_hostname = false\n{text}')
    done = aprilcam("check", "--config", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "127.0.0.1:8883, MQTT 5, TLS, host name not checked" in done.stdout
    assert "mqtt.tls.check_hostname: off" in done.stdout
    key.write_text("no key")
    done = aprilcam("check", "--config", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"aprilcam: mqtt.tls.key_file: {key}: no private key in PEM. Put the certificate's key there.\n"


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_region_outside_the_frame_is_one_message_and_exit_2(tmp_path: Path, command: str) -> None:
    file = write(tmp_path, "[recipes.region]\nx = 200\ny = 0\nwidth = 100\nheight = 100")
    done = aprilcam(command, "--config", file)
    assert done.returncode == 2
    assert done.stderr == (
        f"aprilcam: {file}: recipes.0.region: x=200 y=0 100 x 100 is outside the 256 x 256 frame of camera 'cam'. "
        "Make it fit the frame, or leave it out to take the whole\n"
    )


def test_a_mode_that_the_preset_does_not_know_is_one_message_and_exit_2(tmp_path: Path) -> None:
    done = aprilcam("check", "--config", write(tmp_path, 'mode = "zero_shot"'))
    assert done.returncode == 2
    assert "recipes.0.mode: 'zero_shot' needs words, and preset 'efficientnet-lite0' knows no words. Use mode" in done.stderr


def test_a_missing_file_and_an_unknown_preset_are_told(tmp_path: Path) -> None:
    missing = aprilcam("check", "--config", tmp_path / "none.toml")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "none.toml: file: no such file or directory. Name a file" in missing.stderr
    file = write(tmp_path)
    file.write_text('[inference]\npreset = "resnet"\n' + file.read_text())
    unknown = aprilcam("check", "--config", file)
    assert unknown.returncode == 2
    assert "inference.preset: no preset is named 'resnet'. Known: " in unknown.stderr
    assert "efficientnet-lite0" in unknown.stderr


def test_run_refuses_a_state_folder_it_cannot_write(tmp_path: Path) -> None:
    file = write(tmp_path)
    (tmp_path / "state").write_text("a file, not a folder")
    done = aprilcam("run", "--config", file)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "set [store] path" in done.stderr


def test_run_refuses_a_port_that_is_taken(tmp_path: Path) -> None:
    file = write(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file.write_text(file.read_text().replace("port = 0", f"port = {port}"))
        done = aprilcam("run", "--config", file)
    assert done.returncode == 2
    assert f"HTTP 127.0.0.1:{port}: Address already in use. Stop what uses it" in done.stderr


def test_a_broker_that_is_no_address_is_told(tmp_path: Path) -> None:
    done = aprilcam("run", "--config", write(tmp_path), "--broker", "localhost")
    assert done.returncode == 2
    assert "--broker: 'localhost' is not HOST:PORT" in done.stderr


def test_a_gpu_that_is_not_there_is_told(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text('[inference]\ndevice = "cuda:7"\n' + file.read_text())
    done = aprilcam("run", "--config", file)
    assert done.returncode == 2
    assert "device cuda:7: expected that CUDA device, got" in done.stderr
    assert "Traceback" not in done.stderr
