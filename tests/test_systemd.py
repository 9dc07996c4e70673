"""connectors/systemd.py against a real datagram socket, and the unit against systemd-analyze."""

import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from connectors.systemd import Notifier

FILES = Path(__file__).parent.parent / "systemd"


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
        assert [manager.recv(100) for _ in range(4)] == [
            b"READY=1",
            b"STATUS=two stations",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]
        before_us = time.monotonic_ns() // 1_000
        notifier.reloading()
        reloading, _, at_us = manager.recv(100).decode().partition("\nMONOTONIC_USEC=")
        assert reloading == "RELOADING=1"
        assert before_us <= int(at_us) <= time.monotonic_ns() // 1_000
        notifier.close()


def test_without_a_manager_or_after_it_went_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready()
    assert Notifier({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}).watchdog_s is None
    gone = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.ready()
    gone.alive()


needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that is there."""
    unit = tmp_path / "aprilcam.service"
    unit.write_text((FILES / "aprilcam.service").read_text().replace("/opt/aprilcam/bin/aprilcam", "/bin/true"))
    return unit


@needs_analyze
def test_the_unit_is_valid(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_analyze
def test_the_unit_leaves_little_open_and_says_why(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8", "COLUMNS": "300"})
    [exposure] = re.findall(r"Overall exposure level for aprilcam.service: ([\d.]+)", done.stdout)
    assert float(exposure) <= 2.5, done.stdout
    why = " ".join(line for line in unit.read_text().splitlines() if line.startswith("#"))
    still_open = re.findall(r"^✗ (\S+)", done.stdout, re.MULTILINE)
    assert len(still_open) > 3, done.stdout
    for point in still_open:
        name, _, value = point.partition("=")
        assert (value.removeprefix("~") if value.startswith("~") else name) in why, f"{point} is open, and nothing says why"


@needs_analyze
def test_the_unit_lets_the_daemon_make_the_calls_it_needs() -> None:
    """Of those that strace showed of a daemon with a folder and an emulated Basler camera, the less usual ones.

    It makes one more, fchown: SQLite does, and only as root.
    """
    filters = re.findall(r"^SystemCallFilter=(.+)$", (FILES / "aprilcam.service").read_text(), re.MULTILINE)
    allowed: set[str] = set()
    for given in filters:
        calls = {call for name in given.removeprefix("~").split() for call in members(name)}
        allowed = allowed - calls if given.startswith("~") else allowed | calls
    threads = {
        "setpriority",
        "sched_setaffinity",
        "sched_setscheduler",
        "sched_getaffinity",
        "clone3",
        "futex",
        "prlimit64",
        "mbind",
    }
    cameras = {
        "memfd_create",
        "mmap",
        "ftruncate",
        "socketpair",
        "sendmsg",
        "recvmsg",
        "execve",
        "kill",
        "wait4",
        "prctl",
        "setsid",
    }
    files = {"flock", "fcntl", "fdatasync", "fsync", "rename", "statfs", "ioctl", "sendto", "epoll_wait", "getrandom"}
    assert threads | cameras | files <= allowed
    assert not {"mount", "ptrace", "reboot", "setuid", "chroot", "bpf", "init_module", "chown"} & allowed


def members(name: str) -> set[str]:
    """The system calls of a set, those of the sets within it too."""
    if not name.startswith("@"):
        return {name}
    done = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", name], capture_output=True, text=True, check=True)
    words = [line.strip() for line in done.stdout.splitlines()[1:] if line.strip() and not line.strip().startswith("#")]
    return {call for word in words for call in members(word)}


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed")
def test_user_and_folders_are_made(tmp_path: Path) -> None:
    root = ["--root", str(tmp_path)]
    (tmp_path / "etc").mkdir()
    subprocess.run(["systemd-sysusers", *root, str(FILES / "aprilcam.sysusers")], check=True)
    users = dict(line.split(":", 1) for line in (tmp_path / "etc" / "passwd").read_text().splitlines())
    assert users["aprilcam"].endswith(":/var/lib/aprilcam:/usr/sbin/nologin")
    groups = {line.split(":")[0]: line.split(":")[3] for line in (tmp_path / "etc" / "group").read_text().splitlines()}
    assert {group for group, members in groups.items() if "aprilcam" in members} == {"plugdev", "video", "render"}
    subprocess.run(["systemd-tmpfiles", *root, "--create", str(FILES / "aprilcam.tmpfiles")], check=True)
    for folder in ("var/lib/aprilcam", "etc/aprilcam"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o750


def test_the_kernel_knows_what_is_set() -> None:
    lines = (FILES / "aprilcam.sysctl").read_text().splitlines()
    settings = dict(line.split(" = ") for line in lines if line and not line.startswith("#"))
    assert int(settings["net.core.rmem_max"]) >= 32 << 20
    for key, value in settings.items():
        assert value.isdecimal()
        # A container may hide those of the machine.
        known = Path("/proc/sys", *key.split("."))
        assert known.exists() or not os.access("/proc/sys/net/core/netdev_max_backlog", os.R_OK), key
