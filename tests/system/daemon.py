"""Runs the real daemon, as a user would, for whole-daemon stories."""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from demo.run import free_port
from tests.broker import Broker, Listener, wait_for
from tests.contract_check import VALIDATORS, ContractCheck
from tests.parts import write_parts


def folder_station(name: str, path: Path, extra: str = "") -> str:
    """TOML of a station whose camera plays a folder at 20 pictures a second; every picture counts."""
    return f"""
[[cameras]]
name = "{name}-cam"
driver = "folder"
path = "{path}"
rate_hz = 20.0
retry_s = 0.5
{extra}
[[stations]]
name = "{name}"
camera = "{name}-cam"
recipe = "disc"
frames = "every"
queue_frames = 100
"""


CACHE = Path(tempfile.mkdtemp(prefix="aprilcam-cache-"))
"""The encoder that the first daemon converted, for the others: converting takes seconds."""
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)


class Daemon:
    """One state folder and configuration; the process may be started and ended again and again."""

    def __init__(self, folder: Path, broker_port: int, stations: str, recipe: str, top: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.shots = folder / "shots"
        self.http_port = free_port()
        if not self.shots.exists():
            write_parts(self.shots, range(100, 110))
        self.config = folder / "aprilcam.toml"
        self.config.write_text(
            f"""
{top}
[store]
path = "state"
[mqtt]
port = {broker_port}
prefix = "plant"
[http]
port = {self.http_port}
[[recipes]]
name = "disc"
object = "disc"
shots = "shots"
{recipe}
{stations}
"""
        )
        self.log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.module = "daemon.cli"

    @property
    def home(self) -> str:
        """Address of its pages, without a slash at the end."""
        return f"http://127.0.0.1:{self.http_port}"

    def start(self, *options: str, **environment: str) -> None:
        """Start the process; returns at once. options: of `aprilcam run`."""
        shutil.copytree(CACHE, self.state / "cache", dirs_exist_ok=True)
        command = [sys.executable, "-m", self.module, "run", "--config", str(self.config), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        self.keep_cache()
        return code

    def keep_cache(self) -> None:
        """For the daemons to come."""
        for encoder in (self.state / "cache").glob("encoder-*.zip"):
            shutil.copy(encoder, CACHE)

    def get(self, path: str) -> tuple[int, str]:
        """HTTP GET; (0, reason) while nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.home}{path}", timeout=5) as answer:  # noqa: S310 - our own daemon
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def said(self) -> str:
        """All that the process printed."""
        return self.log.read_text()


class Line:
    """A daemon with its broker and a listener, which checks every message against the contract."""

    def __init__(self, folder: Path, stations: str, recipe: str = "", *, top: str = "", broker: bool = True) -> None:
        self.broker = Broker(folder)
        self.listener: Listener | None = None
        self._known: dict[bytes, dict[str, Any]] = {}
        if broker:
            self.start_broker()
        self.daemon = Daemon(folder, self.broker.port, stations, recipe, top)

    def start_broker(self) -> None:
        """(Re)start mosquitto and listen to it."""
        self.broker.start()
        self.listener = Listener(self.broker.port, "plant/#", contract=ContractCheck("plant"))

    def results(self, station: str) -> list[dict[str, Any]]:
        """Results heard so far, each checked against the shipped schema."""
        assert self.listener is not None
        return [self._checked("result", payload) for payload in self.listener.of(f"{station}/result")]

    def _checked(self, name: str, payload: bytes) -> dict[str, Any]:
        """The message, checked against its shipped schema (each once: tests ask again and again)."""
        if payload not in self._known:
            document = json.loads(payload)
            VALIDATORS[name].validate(document)
            self._known[payload] = document
        return self._known[payload]

    def retained(self, suffix: str, name: str) -> dict[str, Any] | None:
        """The newest message of a retained topic, checked against its schema; None before the first."""
        assert self.listener is not None
        heard = self.listener.of(suffix)
        if not heard:
            return None
        return self._checked(name, heard[-1])

    def wait_results(self, station: str, count: int, timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """The results once there are `count`."""
        wait_for(lambda: len(self.results(station)) >= count, f"{count} results of {station}", timeout_s)
        return self.results(station)

    def close(self) -> None:
        """End everything."""
        if self.daemon.process is not None:
            self.daemon.process.kill()
            self.daemon.process.wait()
            self.daemon.keep_cache()
        try:
            if self.listener is not None:
                self.listener.close()
        finally:
            self.broker.kill()
