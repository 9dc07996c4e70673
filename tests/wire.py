"""A wire with fake GigE Vision cameras at one end and the test at the other: two network namespaces and a veth pair."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config.errors import CameraError
from connectors.cameras.aravis_nodes import aravis_library

CAMERA, OTHER = "192.168.77.10", "192.168.77.11"
_HOST = "192.168.77.1"
_CLONE_NEWNET = 0x40000000


class Wire:
    """The network, and the cameras that were started in it. The calling thread, and what it starts, is at the host's end."""

    def __init__(self) -> None:
        self._camera, self._host = f"aprilcam-{os.getpid()}-camera", f"aprilcam-{os.getpid()}-host"
        self._cameras: dict[str, subprocess.Popen[str]] = {}

    def make(self) -> None:
        """Raises CalledProcessError or FileNotFoundError where this may not be."""
        for name in (self._camera, self._host):
            _ip("netns", "add", name)
        _ip("link", "add", "wire", "netns", self._camera, "type", "veth", "peer", "name", "wire", "netns", self._host)
        # With a broadcast address: without one the fake camera does not hear a subnet's discovery.
        for address in (CAMERA, OTHER):
            _ip("-n", self._camera, "addr", "add", f"{address}/24", "brd", "+", "dev", "wire")
        _ip("-n", self._host, "addr", "add", f"{_HOST}/24", "brd", "+", "dev", "wire")
        for name in (self._camera, self._host):
            for interface in ("lo", "wire"):
                _ip("-n", name, "link", "set", interface, "up")

    def mtu(self, size: int) -> None:
        """Of both ends."""
        for name in (self._camera, self._host):
            _ip("-n", name, "link", "set", "wire", "mtu", str(size))

    def pull(self) -> None:
        """The cable."""
        _ip("-n", self._camera, "link", "set", "wire", "down")

    def plug(self) -> None:
        """It is back, with the addresses it had."""
        _ip("-n", self._camera, "link", "set", "wire", "up")

    def received(self) -> tuple[int, int]:
        """(packets, bytes) that came to the host's end so far."""
        [row] = json.loads(_ip("-n", self._host, "-j", "-s", "link", "show", "wire"))
        counts = row["stats64"]["rx"]
        return counts["packets"], counts["bytes"]

    def start_camera(self, serial: str = "GV01", address: str = CAMERA, lost: float = 0.0, xml: Path | None = None) -> None:
        """A camera that answers when this returns."""
        command = [sys.executable, "-m", "tests.fake_camera", address, serial, str(lost)]
        command += [str(xml)] if xml else []
        with self._at(self._camera):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._cameras[serial] = process
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def kill_camera(self, serial: str = "GV01") -> None:
        """As when its power fails."""
        process = self._cameras.pop(serial)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        """Everything is gone, also what was made by half."""
        for serial in list(self._cameras):
            self.kill_camera(serial)
        for name in (self._camera, self._host):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)

    @contextmanager
    def entered(self) -> Iterator["Wire"]:
        """This thread is at the host's end meanwhile."""
        with self._at(self._host):
            yield self

    @contextmanager
    def _at(self, name: str) -> Iterator[None]:
        with Path("/proc/thread-self/ns/net").open() as before:
            with Path(f"/run/netns/{name}").open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def wire() -> Iterator[Wire]:
    """A wire, this thread at the host's end. Skipped where aravis or network namespaces are not to be had."""
    try:
        aravis_library()
    except CameraError as error:
        pytest.skip(str(error))
    wire = Wire()
    try:
        try:
            wire.make()
        except FileNotFoundError:
            pytest.skip("iproute2 is not installed")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces may not be made here: {error.stderr.strip()}")
        with wire.entered():
            yield wire
    finally:
        wire.close()
