"""Runs `aprilcam doctor` beside the daemon: a process of its own, at the lowest priority, one at a time, with a limit.

The checks that load the model's library or read its weights are left out: the daemon that runs has done both. The doctor itself
opens no camera while a daemon runs.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger(__name__)

LIMIT_S = 180.0
STOP_S = 5.0
LEFT_OUT = ("torch", "weights")
_ROOT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Examination:
    """How the last one went, or that it is under way. findings: as `aprilcam doctor --json` prints them. trouble: why there
    are none."""

    status: Literal["never", "running", "done", "failed"] = "never"
    begun: datetime | None = None
    findings: tuple[dict[str, Any], ...] = ()
    trouble: str = ""


class Examiner:
    """Owner of the doctor's process. Asked from any thread."""

    def __init__(self, options: Sequence[str]) -> None:
        """options: those that make it look at this daemon's plant."""
        self._options = options
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self.last = Examination()

    def begin(self) -> bool:
        """Run it; returns at once. False: it runs already, or the daemon stops."""
        with self._lock:
            if self._closed or self.last.status == "running":
                return False
            self.last = Examination("running", datetime.now(UTC))
            self._thread = threading.Thread(target=self._run, name="doctor", daemon=True)
            self._thread.start()
            return True

    def close(self) -> None:
        """End it, and run no more."""
        with self._lock:
            self._closed = True
            self._kill()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        begun = self.last.begun
        try:
            self.last = Examination("done", begun, tuple(self._ask()))
        except Exception as error:  # whatever it is, it may be run again
            late = isinstance(error, subprocess.TimeoutExpired)
            trouble = f"no answer within {LIMIT_S:g} s" if late else str(error)
            log.warning("the doctor could not be run: %s", trouble)
            self.last = Examination("failed", begun, (), trouble)

    def _ask(self) -> list[dict[str, Any]]:
        left_out = [word for name in LEFT_OUT for word in ("--without", name)]
        doctor = [sys.executable, "-m", "daemon.cli", "doctor", "--json", *self._options, *left_out]
        path = os.pathsep.join(part for part in (_ROOT, os.environ.get("PYTHONPATH", "")) if part)
        with self._lock:
            if self._closed:
                raise ValueError("the daemon stops")
            # A session of its own, so that what it starts ends with it.
            self._process = process = subprocess.Popen(
                ["nice", "-n", "19", *doctor],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        # Where memory runs out it goes first, not the daemon.
        with suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text("1000")
        try:
            told, complaint = process.communicate(timeout=LIMIT_S)
        finally:
            with self._lock:
                self._kill()
                self._process = None
        try:
            findings: list[dict[str, Any]] = json.loads(told)["findings"]
        except ValueError:
            raise ValueError((complaint.strip().splitlines() or [f"exit code {process.returncode}"])[-1]) from None
        return findings

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started, also where it has ended itself
            process.wait()
