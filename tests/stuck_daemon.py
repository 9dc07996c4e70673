"""The daemon, whose model hangs once the file HANG is there; started by tests in the place of `daemon.cli`."""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daemon import cli, health, service
from model.detector import Detector, Judgement

HANG = "APRILCAM_TEST_HANG"


def hang_when_told(sign: Path) -> None:
    """Let each judgement from then on never end."""
    judge = Detector.judge

    def judge_or_hang(self: Detector, pictures: Sequence[Any], references: Sequence[Any]) -> Judgement:
        if sign.exists():
            threading.Event().wait()
        return judge(self, pictures, references)

    Detector.judge = judge_or_hang  # type: ignore[method-assign]


if __name__ == "__main__":
    health.STUCK_S = 3.0
    service.STOP_LIMIT_S = 1.0
    hang_when_told(Path(os.environ[HANG]))
    sys.argv[0] = "aprilcam"
    cli.main()
