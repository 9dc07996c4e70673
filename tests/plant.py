"""Commands with the real parts behind them, for tests of what leads to commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from config.schema import RecipeConfig, StationConfig
from connectors.contract import EventKind, Topics
from connectors.metrics import Metrics
from daemon.banks import Banks
from daemon.builder import Builder, Detail
from daemon.command_parts import Parts
from daemon.commands import Commands
from daemon.finisher import Finisher
from daemon.frames import NewestFrames
from daemon.inspector import Inspector
from daemon.ledger import Ledger
from daemon.maker import Refine
from daemon.programs import Programs
from daemon.recipe_store import RecipeStore
from daemon.recipes import Recipes, Running
from daemon.shots import At, Shots, nowhere
from daemon.station import Program, Station, Taught, Untaught
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

    def __init__(self, folder: Path, detector: Detector, at: At = nowhere) -> None:
        self.state = folder / "state"
        self.detector = detector
        self.metrics = Metrics("test")
        self.frames = NewestFrames()
        self.taught: dict[str, Taught | Untaught] = {}
        self.refine: Refine = lambda *_: None
        self.ledger = Ledger(self.state)
        self._finisher = Finisher(Topics("test"))
        self._inspector = Inspector(self._finisher, max_batch=1, max_wait_s=0)
        self.shots = shots = Shots(self.state, self.ledger, at)
        banks = Banks(self.state, self.ledger)
        self.store = RecipeStore(self.state, self.ledger, list(RECIPES.values()), {"press": "disc"}, at)
        config = StationConfig(name="press", camera="cam", recipe="disc")
        self.station = Station(config, Program(RECIPES["disc"]), True, self.ledger.submit)
        self.events: list[tuple[str, str, Detail]] = []
        """(recipe, kind, detail) of what stations are told."""
        self.told: list[Program] = []
        """Programs of the station."""

        def heard(_station: str, recipe: str, kind: EventKind, detail: Detail) -> None:
            self.events.append((recipe, kind, detail))

        self.programs = programs = Programs(
            self.store, {"press": self.station}, lambda _: self.told.append(self.station.program), heard
        )

        def swap(recipe: RecipeConfig, taught: Taught | Untaught) -> None:
            self.taught[recipe.name] = taught
            programs.taught(recipe, taught)

        self.builder = Builder(
            self.state,
            shots,
            banks,
            detector,
            self._inspector,
            recipe_of=self.store.get,
            on_taught=swap,
            refine=lambda *marked: self.refine(*marked),
            in_use=programs.in_use,
            at=at,
        )
        self.teacher = Teacher(shots, banks, self.store.get, self.builder)
        self.deleted: list[str] = []
        """Recipes."""
        running = Running(self.builder, programs, detector.fingerprint, heard, self.deleted.append)
        self.recipes = Recipes(self.store, shots, banks, knows_words=detector.knows_text, running=running)
        self._inspector.start(detector, [])
        self.builder.start()
        self.commands = Commands(self.store, self.frames, self.metrics.command)
        self.commands.open(Parts(self.teacher, self.recipes))

    def run(self, name: str, request: dict[str, Any] | None = None, attachment: bytes | None = None) -> dict[str, Any]:
        return self.commands.run(name, request or {}, attachment)

    def teach(self, recipe: str, *seeds: int) -> None:
        """Register drawn parts, and wait for the bank of all of them."""
        for seed in seeds:
            [shot] = self.run("register", {"recipe": recipe, "force": True}, picture(seed))["shots"]
        self.built(shot["build"])

    def built(self, build: str | None) -> None:
        """Wait for a build to end."""
        assert build is not None
        assert self.builder.wait(build, 30)

    def select(self, recipe: str) -> None:
        """For its station."""
        assert self.run("select_recipe", {"recipe": recipe, "station": "press"})["recipe"] == recipe

    def listed(self) -> dict[str, dict[str, Any]]:
        """The recipes, by name."""
        return {row["recipe"]: row for row in self.run("recipe_list")["recipes"]}

    def counted(self, command: str, outcome: str) -> float:
        """aprilcam_commands_total of a series."""
        labels = {"command": command, "outcome": outcome}
        return self.metrics.registry.get_sample_value("aprilcam_commands_total", labels) or 0.0

    def close(self) -> None:
        self.frames.close()
        self.commands.close()
        self.builder.stop()
        self._inspector.stop()
        self._finisher.close()
        self.ledger.close()


MakePlant = Callable[..., TestPlant]
"""Makes a plant, and after its `close` the one of the next start."""
