"""A Debian to install into and throw away: this machine's own files below an overlay in memory, in a mount namespace."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

_MAKE = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/changes" "$1/work" "$1/root" &&
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" "$1/root" &&
mount --rbind /proc "$1/root/proc" && mount --rbind /dev "$1/root/dev" &&
mount -t tmpfs tmpfs "$1/root/run" && echo made && exec sleep 300
"""


class Chroot:
    """Made by `make`, gone with `close`; nothing of it is seen outside."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def make(self) -> str | None:
        """Why it cannot be made here, None when it is."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            return "only root may make a mount namespace"
        command = ["unshare", "--mount", "sh", "-c", _MAKE, "sh", str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        if self._process.stdout.readline() == "made\n":
            return None
        return f"an overlay may not be made here: {self._process.stderr.read().strip()}"

    def run(self, *words: str, fails: bool = False, environment: dict[str, str] | None = None) -> str:
        """What the command prints, in the root; it must succeed, or fail where that is meant."""
        done = subprocess.run(
            [*self._inside(), "chroot", f"{self._folder}/root", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=120,
            check=False,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", **(environment or {})},
        )
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def put(self, source: Path, target: str) -> None:
        """Copy a file or a folder into the root."""
        there = f"{self._folder}/root{target}"
        subprocess.run([*self._inside(), "rm", "-rf", there], check=True)
        subprocess.run([*self._inside(), "cp", "-r", str(source), there], check=True)

    def bind(self, source: Path, target: str) -> None:
        """Show a folder of outside, which cannot be changed from inside."""
        there = f"{self._folder}/root{target}"
        subprocess.run([*self._inside(), "mkdir", "-p", there], check=True)
        subprocess.run([*self._inside(), "mount", "--bind", str(source), there], check=True)
        subprocess.run([*self._inside(), "mount", "-o", "remount,bind,ro", there], check=True)

    def changed(self) -> set[str]:
        """Files that were made or changed, and folders; what was deleted of the machine's own is not told."""
        found = subprocess.run(
            [*self._inside(), "find", f"{self._folder}/changes", "-mindepth", "1", "!", "-type", "c", "-printf", "/%P\\n"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return set(found.stdout.splitlines())

    def close(self) -> None:
        """The namespace ends with its only process, and its mounts with it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _inside(self) -> list[str]:
        assert self._process is not None
        return ["nsenter", "--mount", "--target", str(self._process.pid)]
