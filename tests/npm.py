"""Packages from npm, as a lock file of ours pins them."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

BUILD = Path(__file__).parent.parent / "build"
INSTALL_S = 180


def install(source: Path, name: str) -> Path:
    """A folder below build/`name` with the node_modules of the package-lock.json in `source`, made once for each lock file.

    Several test runs may ask at once. OSError: npm's words, or that it is not there."""
    if shutil.which("npm") is None:
        raise OSError("npm is not installed (Debian: apt-get install nodejs npm)")
    lock = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = BUILD / name / lock
    if folder.exists():
        return folder
    for old in (BUILD / name).glob("*"):
        if not old.name.startswith(lock):
            shutil.rmtree(old, ignore_errors=True)
    making = folder.with_name(f"{lock}.{os.getpid()}")
    making.mkdir(parents=True)
    try:
        for file in ("package.json", "package-lock.json"):
            shutil.copy(source / file, making)
        _install(making)
        making.rename(folder)
    except OSError:
        shutil.rmtree(making)
        if not folder.exists():  # else another run was first
            raise
    return folder


def _install(folder: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=1"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"npm ci did not end in {INSTALL_S} s") from error
    if done.returncode:
        raise OSError(f"npm ci failed: {done.stderr.strip()[-400:]}")
