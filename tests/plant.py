"""Commands with the real parts behind them, for tests of what leads to commands."""

from pathlib import Path
from typing import Any

import cv2

from config.schema import RecipeConfig
from connectors.metrics import Metrics
from daemon.command_parts import Parts
from daemon.commands import Commands
from daemon.frames import NewestFrames
from daemon.ledger import Ledger
from daemon.registrar import Registrar
from daemon.station import Taught, Untaught
from daemon.teaching import RegistrarTeacher
from model.detector import Detector
from tests.parts import draw_part

RECIPES = {name: RecipeConfig(name=name, object="disc") for name in ("disc", "ring")}


def picture(seed: int, *, scratched: bool = False, suffix: str = ".png") -> bytes:
    """A drawn part as a file's content."""
    written, content = cv2.imencode(suffix, draw_part(seed, scratched=scratched))
    assert written
    return content.tobytes()


class TestPlant:
    """Two recipes, one station, registering to disk and building with a real detector."""

    __test__ = False

    def __init__(self, folder: Path, detector: Detector) -> None:
        self.state = folder / "state"
        self.metrics = Metrics("test")
        self.frames = NewestFrames()
        self.taught: dict[str, Taught | Untaught] = {}
        self.ledger = Ledger(self.state)
        registrar = Registrar(self.state, self.ledger, detector)
        self.teacher = RegistrarTeacher(registrar, RECIPES, self.taught.__setitem__)
        self.teacher.start({})
        self.commands = Commands(self, self.frames, self.metrics.command)
        self.commands.open(Parts(self.teacher))

    def recipes(self) -> list[str]:
        return list(RECIPES)

    def stations(self) -> dict[str, str]:
        return {"press": "disc"}

    def run(self, name: str, request: dict[str, Any] | None = None, attachment: bytes | None = None) -> dict[str, Any]:
        return self.commands.run(name, request or {}, attachment)

    def counted(self, command: str, outcome: str) -> float:
        """aprilcam_commands_total of a series."""
        labels = {"command": command, "outcome": outcome}
        return self.metrics.registry.get_sample_value("aprilcam_commands_total", labels) or 0.0

    def close(self) -> None:
        self.frames.close()
        self.commands.close()
        self.teacher.stop()
        self.ledger.close()
