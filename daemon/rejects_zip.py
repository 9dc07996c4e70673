"""Archived results as one ZIP, made while it is sent: of a gigabyte no more is in memory than one result's file."""

import zipfile
from collections.abc import Iterator, Sequence

from config.errors import CommandError
from daemon.archive_rows import Archived

MAX_BYTES = 1 << 30


class _Sent:
    """What the ZIP has written since it was last taken. It cannot be sought in, so that nothing is written twice."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""

    def take(self) -> bytes:
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken


def zipped(results: Sequence[Archived]) -> Iterator[bytes]:
    """The ZIP in pieces: of each result picture, map and JSON, as they lie in the archive, by station and day.

    What was given up meanwhile is named in `skipped.txt`. Raises CommandError (`too_large`), before anything is made, for
    over 1 GiB.
    """
    if (size := sum(result.bytes for result in results)) > MAX_BYTES:
        mend = "Ask for fewer: `since`, `until`, `limit`, and the others with `before`"
        raise CommandError("too_large", f"{size} bytes in {len(results)} results, at most {MAX_BYTES}. {mend}")
    return _pieces(results)


def _pieces(results: Sequence[Archived]) -> Iterator[bytes]:
    sent, skipped = _Sent(), list[str]()
    # Stored: PNG does not get smaller.
    with zipfile.ZipFile(sent, "w", zipfile.ZIP_STORED) as file:
        for result in results:
            place = "/".join(result.folder.parts[-2:])
            try:
                # All before the first is written: a result is there whole or not at all.
                parts = {path.name: path.read_bytes() for path in (result.picture, result.document)}
                if result.map.exists():
                    parts[result.map.name] = result.map.read_bytes()
            except OSError:
                skipped.append(result.result_id)
                continue
            for name, data in parts.items():
                file.writestr(f"{place}/{name}", data)
            yield sent.take()
        if skipped:
            file.writestr("skipped.txt", "Given up, or not readable, while this file was made:\n" + "\n".join(skipped) + "\n")
    yield sent.take()
