"""daemon/reload.py: what is told while a file is read again, taken, or refused."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from config.errors import ConfigError, Problem, StoreError
from config.schema import Config
from connectors.systemd import Notifier
from daemon.changes import Changes
from daemon.maker import Progress
from daemon.reload import Reloader
from tests.broker import wait_for
from tests.notify import Manager
from tests.test_changes import config


class Bench:
    """A reloader whose file and whose taking of it the test decides."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.file: Config | Exception = config()
        self.taken: list[Changes] = []
        self.untaught: dict[str, str] = {}
        self.failure: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.notifier = Notifier(manager.environment)
        self.reloader = Reloader(config(), Path("/a/b.toml"), self._read, lambda _: None, self.notifier)
        self.reloader.start(self._apply)

    def _read(self) -> Config:
        if isinstance(self.file, Exception):
            raise self.file
        return self.file

    def _apply(self, changes: Changes, progress: Progress) -> dict[str, str]:
        self.taken.append(changes)
        while not self.go_on.wait(0.01):
            progress("waiting", 0, 1)
        if self.failure is not None:
            raise self.failure
        return self.untaught

    def reload(self, file: Config | Exception) -> dict[str, Any]:
        self.file = file
        before = self.manager.count("READY=1")
        self.reloader.reload()
        wait_for(lambda: self.manager.count("READY=1") > before, "its end")
        return self.reloader.view()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Manager(tmp_path / "notify") as manager:
        own = Bench(manager)
        yield own
        own.reloader.stop()
        own.notifier.close()


FEWER = config(stations=[{"name": "a", "camera": "cam-a", "recipe": "disc"}])


def test_a_file_is_taken_once(bench: Bench) -> None:
    told = bench.reload(FEWER)
    assert (told["file"], told["status"], told["problems"]) == ("/a/b.toml", "in_force", [])
    assert bench.taken[0].removed == ("b", "c")
    bench.reload(FEWER)
    assert bench.taken[1].removed == ()


def test_a_bad_file_is_refused_whole_and_what_needed_a_restart_still_does(bench: Bench) -> None:
    assert bench.reload(config(http={"port": 1}))["needs_restart"] == ["http.port"]
    told = bench.reload(ConfigError(Path("b.toml"), [Problem("x.y", "is wrong", "Correct it"), Problem("z", "too", "Mend it")]))
    assert (told["status"], told["problems"]) == ("refused", ["x.y: is wrong. Correct it", "z: too. Mend it"])
    assert (told["needs_restart"], bench.reloader.refused, len(bench.taken)) == (["http.port"], True, 1)
    assert bench.reload(RecursionError("deep"))["problems"] == ["RecursionError: deep"]
    assert bench.reload(config())["status"] == "in_force"
    assert not bench.reloader.refused


def test_a_recipe_that_could_not_be_taught_is_tried_again(bench: Bench) -> None:
    more = config(recipes=[{"name": name, "object": name} for name in ("disc", "ring", "cog")])
    bench.untaught = {"cog": "no usable shot"}
    told = bench.reload(more)
    assert (told["status"], told["problems"]) == ("partly", ["recipe cog: no usable shot"])
    bench.untaught = {}
    assert bench.reload(more)["status"] == "in_force"
    assert [[recipe.name for recipe in changes.recipes] for changes in bench.taken] == [["cog"], ["cog"]]
    assert [changes.recipes_gone for changes in bench.taken] == [(), ()]


def test_what_was_cut_short_is_tried_again(bench: Bench) -> None:
    bench.failure = StoreError("disk full")
    told = bench.reload(FEWER)
    assert (told["status"], told["problems"]) == ("partly", ["StoreError: disk full"])
    bench.failure = None
    assert bench.reload(FEWER)["status"] == "in_force"
    assert [changes.removed for changes in bench.taken] == [("b", "c"), ("b", "c")]


def test_a_stop_ends_it_and_a_second_request_meanwhile_is_not_lost(bench: Bench) -> None:
    bench.go_on.clear()
    bench.file = FEWER
    bench.reloader.reload()
    wait_for(lambda: len(bench.taken) == 1, "the first")
    assert bench.reloader.view()["status"] == "reading"
    bench.reloader.reload()
    bench.go_on.set()
    wait_for(lambda: len(bench.taken) == 2, "the second")
    wait_for(lambda: bench.manager.count("READY=1") == 2, "its end")
    bench.go_on.clear()
    bench.reloader.reload()
    wait_for(lambda: len(bench.taken) == 3, "the third")
    bench.reloader.stop()
    assert bench.manager.count("READY=1") == 2
