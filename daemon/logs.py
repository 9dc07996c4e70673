"""How the daemon's log is written: for a person at a terminal, for the journal, or one JSON object a line; never flooded.

The journal takes the level from a prefix (sd-daemon(3)), and adds time and unit itself.
"""

import copy
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import TextIO

AT_ONCE = 5
"""So many times a message is written as it comes ..."""
INTERVAL_S = 60.0
"""... within so long; then only their number, at the end of that time."""
KINDS_HELD = 1_000
"""Kinds of messages that are counted; past it the counts begin anew."""
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""syslog's, by the least level."""
ABOUT = re.compile(r"(station|recipe|camera) %s[: ]")
"""How messages begin that are about one of these; its name is their first argument."""


class LogFormat(StrEnum):
    """auto: for the journal where stderr is its, else as text on the terminal."""

    auto = "auto"
    text = "text"
    journal = "journal"
    json = "json"


def is_journal(environment: Mapping[str, str] = os.environ, descriptor: int = 2) -> bool:
    """Whether what is written there goes to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def about(record: logging.LogRecord) -> dict[str, str]:
    """The station, recipe or camera that a record is about, where that is known."""
    found = ABOUT.match(record.msg) if isinstance(record.msg, str) else None
    if found is None or not isinstance(record.args, tuple) or not record.args:
        return {}
    return {found[1]: str(record.args[0])}


class JsonLines(logging.Formatter):
    """One JSON object a line: timestamp, level, logger, message; station, recipe, camera and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        document = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **about(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, ensure_ascii=False)


class JournalLines(logging.Formatter):
    """Plain text, each line with its priority."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in PRIORITIES if record.levelno >= level), 7)
        lines = super().format(record).splitlines() or [""]
        return "\n".join(f"<{priority}>{line}" for line in lines)


@dataclass
class _Repeats:
    since_s: float
    written: int = 0
    held: int = 0
    last: logging.LogRecord | None = None


class Repeats(logging.Filter):
    """Lets a message through AT_ONCE times in INTERVAL_S and counts the others: an error of every frame must not fill a disk.

    Messages are the same when only figures differ, not what they begin with (the station, recipe or camera).
    """

    def __init__(self, write: Callable[[logging.LogRecord], None], interval_s: float = INTERVAL_S) -> None:
        """write: takes the record that tells a number; called on a thread of this filter's own."""
        super().__init__()
        self._write = write
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._kinds: dict[tuple[object, ...], _Repeats] = {}
        threading.Thread(target=self._tell, name="log", daemon=True).start()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it."""
        if record.levelno >= logging.CRITICAL:
            return True
        first = record.args[0] if isinstance(record.args, tuple) and record.args else None
        kind = (record.name, record.levelno, str(record.msg), first if isinstance(first, str) else None)
        now_s = time.monotonic()
        with self._changed:
            if len(self._kinds) >= KINDS_HELD:
                self._kinds = {key: own for key, own in self._kinds.items() if own.held}
            repeats = self._kinds.get(kind)
            if repeats is None or (now_s - repeats.since_s > self._interval_s and not repeats.held):
                repeats = self._kinds[kind] = _Repeats(now_s)
            if repeats.written < AT_ONCE:
                repeats.written += 1
                return True
            repeats.held += 1
            # Without what its traceback holds: frames of a failed batch keep their slots of the cameras' rings.
            repeats.last = copy.copy(record)
            repeats.last.exc_info = None
            self._changed.notify()
        return False

    def _tell(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: any(own.held for own in self._kinds.values()))
                due = min(own.since_s for own in self._kinds.values() if own.held) + self._interval_s
                self._changed.wait(max(0.01, due - time.monotonic()))
                now_s = time.monotonic()
                over = [key for key, own in self._kinds.items() if own.held and now_s - own.since_s >= self._interval_s]
                told = [self._kinds.pop(key) for key in over]
            for repeats in told:
                if repeats.last is not None:
                    self._write(_told(repeats.last, repeats.held, self._interval_s))


def _told(last: logging.LogRecord, held: int, interval_s: float) -> logging.LogRecord:
    message = f"{last.msg} ({held} more such messages within {interval_s:g} s)"
    return logging.LogRecord(last.name, last.levelno, last.pathname, last.lineno, message, last.args, None)


def set_up(handler: logging.Handler) -> None:
    """Let everything that is logged, warned of or not caught go through this handler, and through `Repeats`."""

    def write(record: logging.LogRecord) -> None:
        handler.acquire()
        try:
            handler.emit(record)
        finally:
            handler.release()

    handler.addFilter(Repeats(write))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)
    logging.captureWarnings(True)
    log = logging.getLogger("daemon")

    def caught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        log.critical("not caught: %s", error, exc_info=(kind, error or kind(), trace))

    def caught_on_thread(what: threading.ExceptHookArgs) -> None:
        caught(what.exc_type, what.exc_value, what.exc_traceback)

    sys.excepthook = caught
    threading.excepthook = caught_on_thread


def line_handler(form: LogFormat, stream: TextIO = sys.stderr) -> logging.Handler:
    """For programs: JSON or the journal's lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form is LogFormat.json else JournalLines("%(message)s"))
    return handler
