"""Drop folders: a picture put into a recipe's folder becomes a reference shot, and moves to `taken/` or `refused/`."""

import logging
import os
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from config.errors import CommandError
from connectors.cameras.pictures import SUFFIXES
from connectors.requests import MAX_PICTURE_BYTES
from daemon.commands import Commands

log = logging.getLogger(__name__)

POLL_S = 0.25
SETTLED_S = 1.0
"""A file that has not changed for so long is whole."""
AGAIN_S = 5.0
"""How long a picture waits that could not be taken for no fault of its own (`busy`, `failed`)."""
PASSING = ("busy", "failed")


@dataclass(frozen=True)
class _Seen:
    size: int
    changed_ns: int
    since_s: float


class DropFolders:
    """Owner of the watched folders; one thread for all. Hidden files and other suffixes are left alone."""

    def __init__(self, commands: Commands) -> None:
        self._folders: dict[str, Path] = {}
        self._commands = commands
        self._seen: dict[Path, _Seen] = {}
        self._told: set[Path] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drop folders", daemon=True)

    def watch(self, folders: Mapping[str, Path]) -> None:
        """Watch these from now on: the folder of each recipe that has one."""
        self._folders = dict(folders)
        if self._folders and self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Finish the picture at hand."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            for recipe, folder in self._folders.items():
                try:
                    self._look(recipe, folder)
                except OSError as error:
                    self._tell_once(folder, f"cannot be read ({error.strerror})")
                except Exception:
                    log.exception("drop folder %s", folder)

    def _look(self, recipe: str, folder: Path) -> None:
        there: set[Path] = set()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            if entry.name.startswith(".") or path.suffix.lower() not in SUFFIXES or self._stopping.is_set():
                continue
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                continue
            there.add(path)
            now_s = time.monotonic()
            seen = self._seen.get(path)
            if seen is None or (seen.size, seen.changed_ns) != (status.st_size, status.st_mtime_ns):
                self._seen[path] = _Seen(status.st_size, status.st_mtime_ns, now_s)
            elif now_s - seen.since_s >= SETTLED_S:
                self._take(recipe, path, seen)
        for path in [path for path in self._seen if path.parent == folder and path not in there]:
            del self._seen[path]

    def _take(self, recipe: str, path: Path, seen: _Seen) -> None:
        try:
            held = self._register(recipe, path, seen.size)
        except CommandError as error:
            if error.code in PASSING:
                self._tell_once(path, f"has to wait: {error}")
                self._seen[path] = _Seen(seen.size, seen.changed_ns, time.monotonic() + AGAIN_S - SETTLED_S)
                return
            held = str(error)
        self._put_away(path, held)

    def _register(self, recipe: str, path: Path, size: int) -> str | None:
        """None once it is a shot, else why it is held back."""
        if size > MAX_PICTURE_BYTES:
            raise CommandError("too_large", f"{path.name}: {size} bytes, at most {MAX_PICTURE_BYTES}")
        try:
            # Not through a link that took the file's place.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                picture = file.read(MAX_PICTURE_BYTES + 1)
        except OSError as error:
            raise CommandError("failed", f"{path}: cannot be read ({error.strerror})") from None
        answer = self._commands.run("register", {"recipe": recipe, "name": path.name[:200]}, picture)
        held = answer["shots"][0]["held"]
        if held is None:
            return None
        return (
            f"held back: it scores {held['score']:.4f}, the threshold is {held['threshold']:.4f}. If it is a good part: "
            f"aprilcam register --recipe {recipe} --force FILE"
        )

    def _put_away(self, path: Path, refusal: str | None) -> None:
        folder = path.parent / ("taken" if refusal is None else "refused")
        try:
            folder.mkdir(exist_ok=True)
            target = _free(folder / path.name)
            path.rename(target)
            if refusal is not None:
                target.with_name(f"{target.name}.txt").write_text(f"{refusal}\n", encoding="utf-8")
        except OSError as error:
            self._tell_once(path, f"cannot be moved to {folder.name}/ ({error.strerror}); give the daemon write access")
            self._seen[path] = _Seen(self._seen[path].size, self._seen[path].changed_ns, float("inf"))
            return
        self._seen.pop(path, None)
        self._told.discard(path)
        level = logging.INFO if refusal is None else logging.WARNING
        log.log(level, "drop folder: %s %s", path, "is a reference shot now" if refusal is None else f"refused: {refusal}")

    def _tell_once(self, path: Path, trouble: str) -> None:
        if path not in self._told:
            log.warning("drop folder: %s %s", path, trouble)
            self._told.add(path)


def _free(path: Path) -> Path:
    """The path, or one beside it that nothing has yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free
