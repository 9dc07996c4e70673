"""connectors/systemd.py against a real datagram socket, and the unit against systemd-analyze."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from connectors.systemd import Notifier

UNIT = Path(__file__).parent.parent / "systemd" / "aprilcam.service"


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_reach_the_manager(tmp_path: Path, abstract: bool) -> None:
    address = f"\0aprilcam-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": address.replace("\0", "@"), "WATCHDOG_USEC": "3000000"})
        assert notifier.watchdog_s == 3.0
        notifier.ready()
        notifier.status("two stations")
        notifier.alive()
        notifier.stopping()
        notifier.close()
        assert [manager.recv(100) for _ in range(4)] == [
            b"READY=1",
            b"STATUS=two stations",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]


def test_without_a_manager_or_after_it_went_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready()
    assert Notifier({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}).watchdog_s is None
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.ready()
    gone.alive()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / "aprilcam.service"
    unit.write_text(UNIT.read_text().replace("/opt/aprilcam/bin/aprilcam", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
