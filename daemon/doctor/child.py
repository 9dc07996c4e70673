"""A look that may hang or crash (a driver's library) happens in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = str(Path(__file__).parents[2])


class ChildError(Exception):
    """The process gave no answer; the text says what it gave."""


def ask(*words: str, limit_s: float, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The JSON object that `python WORDS` prints, run with our own modules. Raises ChildError."""
    path = os.pathsep.join(part for part in (_ROOT, os.environ.get("PYTHONPATH", "")) if part)
    try:
        done = subprocess.run(
            [sys.executable, *words],
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ChildError(f"no answer within {limit_s:g} s") from None
    except OSError as error:
        raise ChildError(f"it cannot be started: {error}") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if done.returncode != 0 or not isinstance(answer, dict):
        told = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise ChildError(told[-1].removeprefix("aprilcam: "))
    return answer
