"""A Prometheus of our own on a loopback port: it scrapes daemons, or holds a history made beforehand."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from demo.run import free_port

START_S = 30.0


class QueryRefusedError(Exception):
    """Prometheus does not take an expression, or gives up on it."""


class Prometheus:
    """The process. folder: its configuration, its data, its log."""

    def __init__(self, folder: Path, targets: Iterable[str] = (), *, scrape_s: float = 15.0) -> None:
        """targets: host:port of daemons, for the job `aprilcam`."""
        self.folder = folder
        self.data = folder / "prometheus"
        self.port = free_port()
        self._config = folder / "prometheus.yml"
        listed = ", ".join(f'"{target}"' for target in targets)
        self._config.write_text(
            f"global: {{scrape_interval: {round(scrape_s * 1000)}ms, scrape_timeout: {round(scrape_s * 1000)}ms}}\n"
            f"scrape_configs:\n  - job_name: aprilcam\n    static_configs: [{{targets: [{listed}]}}]\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def backfill(self, openmetrics: Path) -> None:
        """Add blocks made of a text, before `start`. It should span a block (two hours): promtool reads it once for each."""
        command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(openmetrics), str(self.data)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"promtool takes no history from {openmetrics}: {done.stderr.strip()}")

    def start(self) -> None:
        """Returns once it answers. Blocks stay as they are: compacting would work against what is measured."""
        program = shutil.which("prometheus")
        if program is None:
            raise RuntimeError("there is no prometheus: install it (Debian: apt-get install prometheus)")
        blocks = ["--storage.tsdb.min-block-duration=2h", "--storage.tsdb.max-block-duration=2h"]
        with (self.folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self.data}",
                    "--storage.tsdb.retention.time=60d",
                    *blocks,
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end_s = time.monotonic() + START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > end_s:
                self.close()
                raise RuntimeError(f"prometheus does not start: {(self.folder / 'prometheus.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _ask(self, path: str, fields: Mapping[str, str]) -> Any:
        body = urllib.parse.urlencode(fields).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", body, timeout=180) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                told = json.load(error)
            raise QueryRefusedError(f"{told['error']} in {fields}") from None

    def at(self, expression: str, time_s: float) -> list[dict[str, Any]]:
        """Instant vector: [{metric, value: [time, text]}]. Raises QueryRefusedError."""
        answer = self._ask("query", {"query": expression, "time": f"{time_s:.3f}"})
        if answer["resultType"] == "scalar":
            return [{"metric": {}, "value": answer["result"]}]
        result: list[dict[str, Any]] = answer["result"]
        return result

    def over(self, expression: str, start_s: float, end_s: float, step_s: float) -> list[dict[str, Any]]:
        """Matrix: [{metric, values: [[time, text], ...]}]. Raises QueryRefusedError."""
        span = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:.3f}"}
        result: list[dict[str, Any]] = self._ask("query_range", {"query": expression, **span})["result"]
        return result

    def series(self, selector: str, start_s: float, end_s: float) -> list[dict[str, str]]:
        """The label sets that had a sample in that time."""
        span = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}"}
        result: list[dict[str, str]] = self._ask("series", {"match[]": selector, **span})
        return result

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None
