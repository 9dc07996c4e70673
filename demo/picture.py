"""`make picture`: what `make run` prints on a terminal, as docs/run.svg for the README."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "run.svg"
WIDTH = 92


def capture(seconds: float) -> str:
    """The bytes that a terminal would get in so many seconds of results, with the summary after Ctrl-C."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "LINES": "60", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "demo.run"]
    daemon = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
    os.close(slave)
    text, stop_s, asked = "", float("inf"), False
    while True:
        readable, _, _ = select.select([master], [], [], 0.2)
        if readable:
            try:
                text += os.read(master, 65_536).decode(errors="replace")
            except OSError:  # the other end is closed
                break
        if not asked and stop_s == float("inf") and "threshold   " in text:
            stop_s = time.monotonic() + seconds
        if time.monotonic() > stop_s:
            os.killpg(daemon.pid, signal.SIGINT)
            stop_s, asked = float("inf"), True
    daemon.wait(30)
    return text


def _bar(line: str) -> str | None:
    """What a progress bar tells of, however wide its column is; None for any other line."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
    return plain.split(" ━")[0].strip() if "━" in plain else None


def main() -> None:
    """Run, and draw the last state of the screen without the progress bar's redraws."""
    text = capture(4.0).replace(str(ROOT), "~/aprilcam")
    final = [line.rstrip().split("\r")[-1] for line in text.replace("\r\n", "\n").split("\n")]
    # A bar is drawn again and again by moving the cursor up; each line's last drawing counts.
    lines: list[str] = []
    for line in final:
        name = _bar(line)
        lines = [old for old in lines if name is None or _bar(old) != name]
        lines.append(re.sub(r"\x1b\[[0-9;?]*[A-HJKlh]", "", line))
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), highlight=False)  # noqa: PTH123, SIM115
    console.print(Text("$ make run", "bold"))
    for line in lines:
        console.print(Text.from_ansi(line))
    TARGET.write_text(console.export_svg(title="aprilcam"))
    print(f"picture: {TARGET}")


if __name__ == "__main__":
    main()
