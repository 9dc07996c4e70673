"""The archive: fails, unknowns and a share of the passes, kept as original pixels with map and result.

`hold` copies the pixels of a frame that is to be kept, before its slot in the camera's ring is needed; `committed` hands
it to the archive's thread once the ledger has its result; that thread encodes, writes, makes room, and keeps the books.
The ledger's table `archived` is the truth: a row is written after its files and removed before them, so that what `find`
tells is there. Nothing here waits for the disk but that thread: what it cannot take is dropped and counted.
"""

import errno
import hashlib
import logging
import os
import queue
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.errors import ArchiveError
from config.schema import ArchiveConfig, Region
from connectors import scraped
from connectors.contract import ResultOut, Verdict
from daemon.archive_files import ArchivedOut, encode_set, read_json, read_map, read_pixels, remove_set, write_set
from daemon.archive_rows import (
    CREATE,
    EVERY,
    Archived,
    Selection,
    StoredSet,
    drop,
    find,
    in_folder,
    insert,
    latest,
    take_older,
    take_oldest,
)
from daemon.ledger import Ledger

log = logging.getLogger(__name__)

QUEUE_BYTES = 256 << 20
"""Pixels and maps that may wait in memory. Only fails may use the second half."""
BLOCKS_BYTES = 16_384
"""What a set takes on the disk beyond its bytes: each file ends within a block, and has a name in its folder."""
PAUSE_S = 5.0
"""After the disk refused, nothing is tried, and nothing copied, for so long."""
IDLE_S = 1.0
AGE_CHECK_S = 60.0
STOP_S = 5.0
"""A stop waits for the queue no longer than this; the rest is dropped."""

REASONS = ("queue_full", "disk_full", "quota_full", "disk_failed", "failed", "stopped")
"""Why a frame was dropped: no room in memory; the disk is short; marked results fill the quota; the disk refused; encoding
failed; the daemon stopped first."""
_NAME = re.compile(r"^([0-9a-f-]{36})(\.png|\.map\.png|\.json)(\.part)?$")


@dataclass(frozen=True, eq=False)
class _Held:
    verdict: Verdict
    pixels: NDArray[np.uint8]
    anomaly_map: NDArray[np.float32] | None
    region: Region | None
    nbytes: int


def sampled(result_id: str, share: float) -> bool:
    """Whether a pass is among the share that is kept: the same for the same result_id, always and everywhere."""
    return int.from_bytes(hashlib.sha256(result_id.encode()).digest()[:8]) < share * 2**64


class Archive:
    """Owner of the folder `archive/` of the state folder, and of the ledger's table `archived`.

    `hold`, `release` and `committed` return at once, and may be called from any thread, as may what reads.
    """

    def __init__(
        self, store: Path, ledger: Ledger, config: ArchiveConfig, on_dropped: Callable[[str], None] = lambda _: None
    ) -> None:
        self.root = store / "archive"
        self._ledger = ledger
        self._config = config
        self._on_dropped = on_dropped
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._held_bytes = 0
        self._work: queue.SimpleQueue[tuple[ResultOut, _Held] | None] = queue.SimpleQueue()
        self._stopping = False
        self._refusal = ""
        self._refused_until_s = 0.0
        self.failing = False
        """The disk, or the quota, took no frame when one was last tried."""
        self.bytes = 0
        self.files = 0
        ledger.call(lambda connection: [connection.execute(statement) for statement in CREATE]).result()
        self._thread = threading.Thread(target=self._run, name="archive", daemon=True)
        self._thread.start()

    # On the way of a frame.

    def hold(
        self,
        result_id: str,
        verdict: Verdict,
        pixels: NDArray[np.uint8] | None,
        anomaly_map: NDArray[np.float32] | None,
        region: Region | None,
    ) -> None:
        """Copy what is to be kept of a frame (pixels: all of it; map: of the region of interest), if it is to be kept."""
        config = self._config
        if not config.enabled or pixels is None or (verdict == "pass" and not sampled(result_id, config.pass_share)):
            return
        if time.monotonic() < self._refused_until_s:
            self._on_dropped(self._refusal)
            return
        kept_map = anomaly_map if config.maps else None
        nbytes = pixels.nbytes + (0 if kept_map is None else kept_map.nbytes)
        with self._lock:
            room = QUEUE_BYTES if verdict == "fail" else QUEUE_BYTES // 2
            full = self._held_bytes > 0 and self._held_bytes + nbytes > room
            self._held_bytes += 0 if full else nbytes
        if full:
            self._on_dropped("queue_full")
            return
        try:
            # Only a copy outlives the ring's slot; a map may be a view of its whole batch.
            held = _Held(verdict, pixels.copy(), None if kept_map is None else kept_map.copy(), region, nbytes)
        except MemoryError:  # must not cost the frame its verdict
            with self._lock:
                self._held_bytes -= nbytes
            self._on_dropped("queue_full")
            return
        with self._lock:
            self._held[result_id] = held

    def release(self, result_id: str) -> None:
        """The result will not be: let go what was held for it."""
        with self._lock:
            held = self._held.pop(result_id, None)
            self._held_bytes -= held.nbytes if held else 0

    def committed(self, results: Iterable[ResultOut]) -> None:
        """The ledger has these results: what was held for them is to be written."""
        for result in results:
            with self._lock:
                held = self._held.pop(result.result_id, None)
            if held is not None:
                self._work.put((result, held))

    def close(self) -> None:
        """Write what waits, for 5 s at most."""
        self._work.put(None)
        self._thread.join(STOP_S)
        self._stopping = True
        self._thread.join(STOP_S)

    # For people and programs.

    def find(self, result_id: str) -> Archived | None:
        """The archived result, None when it is not (or no longer) there."""
        with closing(self._ledger.reader()) as reader:
            return find(reader, self.root, result_id)

    def latest(self, selection: Selection = EVERY, limit: int = 50) -> list[Archived]:
        """Archived results, newest first. Raises ArchiveError when the one that they are to follow is not there."""
        with closing(self._ledger.reader()) as reader:
            return latest(reader, self.root, selection, limit)

    def pixels(self, result_id: str) -> NDArray[np.uint8]:
        """The whole frame as it came from the camera: H x W, or H x W x 3, RGB. Raises ArchiveError."""
        return read_pixels(self._existing(result_id).folder, result_id)

    def map(self, result_id: str) -> NDArray[np.float32] | None:
        """The anomaly map of the region of interest, S x S; None where none was kept. Raises ArchiveError."""
        return read_map(self._existing(result_id).folder, result_id)

    def told(self, result_id: str) -> ArchivedOut:
        """The result as it was published, and its region of interest. Raises ArchiveError."""
        return read_json(self._existing(result_id).folder, result_id)

    def readings(self) -> Iterator[scraped.Reading]:
        """What is read at each scrape."""
        yield scraped.ARCHIVE_BYTES.of(self.bytes)
        yield scraped.ARCHIVE_FILES.of(self.files)
        yield scraped.ARCHIVE_FAILING.of(self.failing)

    def _existing(self, result_id: str) -> Archived:
        archived = self.find(result_id)
        if archived is None:
            reason = "never kept, or given up since. Take another, or raise pass_share, max_age_days or max_bytes in [archive]"
            raise ArchiveError(f"result {result_id}: not in the archive ({reason})")
        return archived

    # On the archive's thread.

    def _run(self) -> None:
        # Of Linux: the priority of this thread alone. Encoding takes what inspection leaves.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        with closing(self._ledger.reader()) as reader:
            self.bytes, self.files = reader.execute("SELECT total(bytes), total(files) FROM archived").fetchone()
            unchecked: list[str] = []
            self._guarded(lambda: unchecked.extend(self._folders(reader)))
            aged_s = -AGE_CHECK_S
            while True:
                try:
                    item = self._work.get(timeout=0.0 if unchecked else IDLE_S)
                except queue.Empty:
                    if unchecked:
                        self._guarded(self._reconcile, reader, unchecked.pop())
                        continue
                else:
                    if item is None:
                        return
                    self._store(*item)
                    del item
                if time.monotonic() - aged_s > AGE_CHECK_S:
                    aged_s = time.monotonic()
                    self._guarded(self._drop_old)
                if self.failing and self._refusal == "disk_full":
                    self._guarded(self._look_again)

    def _guarded(self, work: Callable[..., object], *args: object) -> None:
        """Upkeep must not end the thread."""
        try:
            work(*args)
        except Exception:
            self.failing = True
            log.exception("archive %s: upkeep failed", self.root)

    def _store(self, result: ResultOut, held: _Held) -> None:
        reason: str | None
        try:
            if self._stopping:
                reason = "stopped"
            elif time.monotonic() < self._refused_until_s:
                reason = self._refusal
            else:
                reason = self._write(result, held)
        except OSError as error:
            reason = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk_failed"
            self._refuse(reason, str(error))
        except Exception:
            log.exception("archive %s: result %s could not be kept", self.root, result.result_id)
            reason = "failed"
        if reason is not None:
            self._on_dropped(reason)
        with self._lock:
            self._held_bytes -= held.nbytes

    def _write(self, result: ResultOut, held: _Held) -> str | None:
        """Why it was not kept, None when it was."""
        files = encode_set(result, held.pixels, held.anomaly_map, held.region)
        size = sum(map(len, files.values()))
        if (reason := self._make_room(size)) is not None:
            self._refuse(reason, f"{self._free_bytes()} bytes are free, {self.bytes} are archived")
            return reason
        folder = f"{result.station}/{result.created_at.astimezone(UTC):%Y-%m-%d}"
        write_set(self.root / folder, result.result_id, files)
        self._ledger.call(partial(insert, result=result, folder=folder, size=size, files=len(files))).result()
        self.bytes += size
        self.files += len(files)
        if self.failing:
            log.warning("archive %s: takes frames again", self.root)
        self.failing = False
        return None

    def _refuse(self, reason: str, detail: str) -> None:
        if not self.failing:
            log.error("archive %s: %s (%s); frames are inspected but not kept", self.root, reason, detail)
        self.failing = True
        self._refusal, self._refused_until_s = reason, time.monotonic() + PAUSE_S

    def _free_bytes(self) -> int:
        self.root.mkdir(parents=True, exist_ok=True)
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def _make_room(self, size: int) -> str | None:
        """Give up the oldest for a new set of `size` bytes; why there is no room, None when there is.

        Near the end of the disk the newest takes the oldest's place. But it is given at most twice its size: when others
        fill the disk the archive does not give itself up for them, it stops.
        """
        least, most = self._config.min_free_bytes, self._config.max_bytes
        on_disk = size + BLOCKS_BYTES
        free = self._free_bytes()
        if free < least:
            return "disk_full"
        # A tenth more than what must be free, as the ledger grows meanwhile.
        excess = max(self.bytes + size - most, min(least + least // 10 + on_disk - free, 2 * on_disk))
        while excess > 0:
            given_up = self._ledger.call(partial(take_oldest, enough=excess)).result()
            if not given_up:
                break
            self._remove(given_up)
            excess -= sum(stored.bytes for stored in given_up)
        if self.bytes + size > most:
            return "quota_full"
        return "disk_full" if self._free_bytes() - on_disk < least else None

    def _look_again(self) -> None:
        if self._free_bytes() >= self._config.min_free_bytes:
            self.failing = False

    def _drop_old(self) -> None:
        before_ns = time.time_ns() - int(self._config.max_age_days * 86_400e9)
        while given_up := self._ledger.call(partial(take_older, before_ns=before_ns)).result():
            self._remove(given_up)

    def _remove(self, given_up: list[StoredSet]) -> None:
        for stored in given_up:
            self.bytes -= stored.bytes
            self.files -= stored.files
        for stored in given_up:
            remove_set(self.root / stored.folder, stored.result_id)
        for folder in {stored.folder for stored in given_up}:
            with suppress(OSError):  # not empty
                (self.root / folder).rmdir()

    # Reconciling: one folder whenever there is nothing else to do, the newest first, as only there a crash leaves halves.

    def _folders(self, reader: sqlite3.Connection) -> list[str]:
        """Folders on the disk or in the books, the newest last."""
        known = {str(row[0]) for row in reader.execute("SELECT DISTINCT folder FROM archived")}
        there = {str(path.relative_to(self.root)) for path in self.root.glob("*/*") if path.is_dir()}
        return sorted(known | there, key=lambda folder: folder.rpartition("/")[2])

    def _reconcile(self, reader: sqlite3.Connection, folder: str) -> None:
        """Remove files without a row, and rows (with their files) whose files are not whole."""
        sizes: dict[str, int] = {}
        unfinished: set[str] = set()
        with suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                if (name := _NAME.match(entry.name)) is None:
                    continue
                sizes[name[1]] = sizes.get(name[1], 0) + entry.stat().st_size
                if name[3]:
                    unfinished.add(name[1])
        rows = in_folder(reader, folder)
        broken = [stored for result_id, stored in rows.items() if sizes.get(result_id) != stored.bytes]
        orphans = sizes.keys() - rows.keys()
        if broken:
            self._ledger.call(partial(drop, result_ids=[stored.result_id for stored in broken])).result()
            self._remove(broken)
        for result_id in orphans:
            remove_set(self.root / folder, result_id)
        if broken or orphans:
            log.warning(
                "archive %s: %s: removed %d results with files missing, %d without row",
                self.root,
                folder,
                len(broken),
                len(orphans),
            )
        with suppress(OSError):  # not empty
            (self.root / folder).rmdir()
