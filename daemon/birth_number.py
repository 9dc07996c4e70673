"""The number that joins a Sparkplug node's birth and its death."""

import logging
from pathlib import Path

from connectors import sparkplug

log = logging.getLogger(__name__)


class BirthNumber:
    """`bdSeq`, one more at each CONNECT, over restarts too: a late will of an earlier session must not fit a later birth."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._last = int(file.read_text()) % 256
        except (OSError, ValueError):
            self._last = 255

    def next(self) -> int:
        """The number of the CONNECT that comes."""
        return sparkplug.following(self._last)

    def used(self, number: int) -> None:
        """That CONNECT was sent."""
        self._last = number
        new = self._file.with_suffix(".new")
        try:
            new.write_text(str(number))
            new.replace(self._file)
        except OSError as error:
            log.warning("%s: %s. The next start may use a birth number again.", self._file, error.strerror)
