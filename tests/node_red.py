"""A real Node-RED with the shipped flow."""

import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from demo.run import free_port
from tests import npm
from tests.broker import wait_for

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "config" / "node-red"


def missing() -> str | None:
    """Why Node-RED cannot run here; None where it can."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "node and npm are not installed (Debian: apt-get install nodejs npm)"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    found = re.match(r"v(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < (18, 5):
        return f"node is {version}, Node-RED 4 needs 18.5 or newer"
    return None


def install() -> Path:
    """The folder with node_modules as the shipped lock file says. OSError: npm's words."""
    return npm.install(SHIPPED, "node-red")


class NodeRed:
    """The shipped flow and settings in a folder of its own; what a user sets in the tab's properties is set."""

    path = "/dashboard/aprilcam"
    """Of the dashboard's page."""

    def __init__(self, folder: Path, broker_port: int, prefix: str) -> None:
        installed = install()
        self.folder = folder / "node-red"
        self.folder.mkdir()
        for name in ("package.json", "settings.js"):
            shutil.copy(SHIPPED / name, self.folder)
        (self.folder / "node_modules").symlink_to(installed / "node_modules")
        nodes = json.loads((SHIPPED / "flows.json").read_text())
        wanted = {"MQTT_PORT": str(broker_port), "PREFIX": prefix}
        [tab] = [node for node in nodes if node["type"] == "tab"]
        for setting in tab["env"]:
            setting["value"] = wanted.get(setting["name"], setting["value"])
        (self.folder / "flows.json").write_text(json.dumps(nodes))
        self.port = free_port()
        self.log = self.folder / "node-red.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> str:
        """Address of what it serves, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when the page is served."""
        command = ["node_modules/.bin/node-red", "--settings", "settings.js", "--userDir", "."]
        with self.log.open("ab") as log:
            environment = {**os.environ, "PORT": str(self.port)}
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=environment)
        wait_for(self._served, "the dashboard", 40)

    def _served(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(self.home + self.path, timeout=5) as answer:  # noqa: S310 - our own Node-RED
                return bool(answer.status == 200)
        except (urllib.error.HTTPError, OSError):
            return False

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
