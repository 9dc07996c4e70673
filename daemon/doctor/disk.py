"""The disk of the state folder: local, with room, and quick enough for the ledger."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from config.schema import Config, StoreConfig
from daemon.doctor.finding import AS_DAEMON, Finding, Situation

_PIECE = 1 << 20
_PIECES = 8
SLOW_MB_S = 20.0
SLOW_SYNC_S = 0.25
"""The ledger commits several times a second."""
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs"}


def look_at_disk(situation: Situation) -> Iterator[Finding]:
    """Room, kind and speed. 8 MiB are written, synced and removed again."""
    path = situation.config.store.path if situation.config is not None else StoreConfig().path
    folder = path
    while not folder.exists():
        folder = folder.parent
    where = f"{path}" if folder == path else f"{path} (to be made; {folder} is looked at)"
    yield _kind(situation, folder, where)
    yield _room(situation.config, path, folder, where)
    try:
        speed_mb_s, slowest_s = write_speed(folder)
    except PermissionError:
        yield Finding("skipped", f"{where}: this user may not write there", AS_DAEMON)
    except OSError as error:
        yield Finding("fail", f"{where}: {error.strerror}", "Look at the disk: journalctl -k, smartctl -a")
    else:
        yield judge_speed(where, speed_mb_s, slowest_s)


def _kind(situation: Situation, folder: Path, where: str) -> Finding:
    kind, longest = "unknown", -1
    for line in (situation.read("proc/self/mounts") or "").splitlines():
        place = line.split(" ")[1].replace("\\040", " ")
        if folder.resolve().is_relative_to(place) and len(place) >= longest:
            kind, longest = line.split(" ")[2], len(place)
    if kind in _REMOTE:
        return Finding("fail", f"{where}: {kind}, over a network", "Put [store] path on a local disk: the ledger needs its locks")
    if kind == "tmpfs":
        return Finding("warn", f"{where}: tmpfs, in memory", "Put [store] path on a disk: at a restart all is gone")
    return Finding("ok", f"{where}: file system {kind}")


def _room(config: Config | None, path: Path, folder: Path, where: str) -> Finding:
    told = os.statvfs(folder)
    free = told.f_bavail * told.f_frsize
    found = f"{where}: {_gb(free)} free"
    if told.f_files and told.f_favail < 10_000:
        return Finding("fail", f"{found}, but room for {told.f_favail} files", "Delete files: the file system has no inodes left")
    if config is None:
        return Finding("ok" if free > 5e9 else "warn", found, "" if free > 5e9 else "Make room: 5 GB are a beginning")
    least = config.archive.min_free_bytes
    wanted = config.archive.max_bytes + least if config.archive.enabled else least
    kept = _size(path / "archive") if config.archive.enabled else 0
    if free < least:
        return Finding("fail", f"{found}, [archive] min_free_bytes is {_gb(least)}", "Make room; nothing is archived till then")
    if free + kept < wanted:
        mend = "Make room, or set [archive] max_bytes lower"
        return Finding("warn", f"{found}; the archive may take {_gb(config.archive.max_bytes)}, and has {_gb(kept)}", mend)
    return Finding("ok", found)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).lstat().st_size
    return total


def write_speed(folder: Path) -> tuple[float, float]:
    """(MB/s, the slowest fsync in seconds) of 8 pieces of 1 MiB, each synced. Raises OSError."""
    piece = os.urandom(_PIECE)
    slowest_s = 0.0
    # It has no name in the folder, so that nothing is left there whatever happens.
    with tempfile.TemporaryFile(dir=folder) as file:
        begun_s = time.monotonic()
        for _ in range(_PIECES):
            file.write(piece)
            file.flush()
            sync_s = time.monotonic()
            os.fsync(file.fileno())
            slowest_s = max(slowest_s, time.monotonic() - sync_s)
        took_s = time.monotonic() - begun_s
    return _PIECES * _PIECE / 1e6 / max(took_s, 1e-6), slowest_s


def judge_speed(where: str, speed_mb_s: float, slowest_s: float) -> Finding:
    """Of what `write_speed` gave."""
    found = f"{where}: {speed_mb_s:.0f} MB/s, the slowest fsync {slowest_s * 1e3:.0f} ms"
    if speed_mb_s < SLOW_MB_S or slowest_s > SLOW_SYNC_S:
        return Finding("warn", found, "Use an SSD for [store] path, and see what else writes there (iotop)")
    return Finding("ok", found)
