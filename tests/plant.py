"""Commands with the real parts behind them, for tests of what leads to commands."""

from pathlib import Path
from typing import Any

import cv2

from config.schema import RecipeConfig
from connectors.contract import Topics
from connectors.metrics import Metrics
from daemon.banks import Banks
from daemon.builder import Builder
from daemon.command_parts import Parts
from daemon.commands import Commands
from daemon.finisher import Finisher
from daemon.frames import NewestFrames
from daemon.inspector import Inspector
from daemon.ledger import Ledger
from daemon.maker import Refine
from daemon.shots import Shots
from daemon.station import Taught, Untaught
from daemon.teacher import Teacher
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
        self.refine: Refine = lambda *_: None
        self.ledger = Ledger(self.state)
        self._finisher = Finisher(Topics("test"))
        self._inspector = Inspector(self._finisher, max_batch=1, max_wait_s=0)
        shots, banks = Shots(self.state, self.ledger), Banks(self.state, self.ledger)
        self._builder = Builder(
            self.state,
            shots,
            banks,
            detector,
            self._inspector,
            recipe_of=RECIPES.__getitem__,
            on_taught=self.taught.__setitem__,
            refine=lambda *marked: self.refine(*marked),
        )
        self.teacher = Teacher(shots, banks, RECIPES.__getitem__, self._builder)
        self._inspector.start(detector, [])
        self._builder.start()
        self.commands = Commands(self, self.frames, self.metrics.command)
        self.commands.open(Parts(self.teacher))

    def recipes(self) -> list[str]:
        return list(RECIPES)

    def stations(self) -> dict[str, str]:
        return {"press": "disc"}

    def run(self, name: str, request: dict[str, Any] | None = None, attachment: bytes | None = None) -> dict[str, Any]:
        return self.commands.run(name, request or {}, attachment)

    def built(self, build: str | None) -> None:
        """Once that build has ended."""
        assert build is not None
        assert self._builder.wait(build, 30)

    def counted(self, command: str, outcome: str) -> float:
        """aprilcam_commands_total of a series."""
        labels = {"command": command, "outcome": outcome}
        return self.metrics.registry.get_sample_value("aprilcam_commands_total", labels) or 0.0

    def close(self) -> None:
        self.frames.close()
        self.commands.close()
        self._builder.stop()
        self._inspector.stop()
        self._finisher.close()
        self.ledger.close()
