"""The operator page on a real server with a real ledger, and a client."""

from pathlib import Path
from typing import Any

import httpx
from starlette.routing import BaseRoute

from config.schema import HttpConfig
from connectors.contract import ResultOut
from daemon.commands import Commands
from daemon.frames import NewestFrames
from daemon.ledger import Ledger
from daemon.line import StationView
from daemon.overview import Overview
from daemon.recipe_store import RecipeStore
from daemon.station import Program
from daemon.web.access import Access
from daemon.web.app import HttpServer, create_app
from daemon.web.page import Page
from daemon.web.users import hash_password
from tests.broker import wait_for
from tests.records import entry


def view(station: str, **changed: Any) -> StationView:
    told: dict[str, Any] = {
        "camera": "cam", "device": None, "recipe": "gear", "state": "ContinuousExecution", "reason": None, "bank": "abc",
        "mode": "few_shot", "threshold": 0.5, "threshold_stale": False, "shots": 8, "advice": None,
    }  # fmt: skip
    return StationView(station=station, **(told | changed))


def write_users(folder: Path) -> Path:
    """A users file with a viewer and an engineer, each named so."""
    lines = [f"{name}:{name}:{hash_password('secret of ' + name)}" for name in ("viewer", "engineer")]
    (folder / "users").write_text("\n".join(lines) + "\n")
    return folder / "users"


class Serving:
    """A page on a free port of the loopback, and a client."""

    def __init__(self, page: Page, access: Access, config: HttpConfig, *beside: BaseRoute) -> None:
        self.page = page
        routes = [*beside, *access.routes(), *page.routes()]
        self._server = HttpServer(config, create_app(lambda: b"", lambda: (True, {}), lambda: (True, {}), routes))
        self._server.start()
        self.http = httpx.Client(base_url=self._server.url, trust_env=False, timeout=20)
        wait_for(self._serves, "the server")

    def _serves(self) -> bool:
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.ConnectError:
            return False

    def log_in(self, name: str) -> None:
        """As somebody of `write_users`, who may be told apart by the name alone."""
        self.http.cookies.clear()
        answer = self.http.post("/login", data={"name": name, "password": f"secret of {name}"})
        assert answer.status_code == 303

    def close(self) -> None:
        self.page.live.close()
        self.http.close()
        self._server.stop()


class Wall(Serving):
    """A page of two stations."""

    def __init__(self, folder: Path, **http: Any) -> None:
        self.views = [view("press"), view("<b>oven", state="Preoperational", reason="camera lost")]
        self.programs: dict[str, Program] = {}
        self.results: list[ResultOut] = []
        self.ledger = Ledger(folder, self._committed)
        config = HttpConfig(port=0, **http)
        access = Access(config, folder / "x.toml")
        frames = NewestFrames()
        commands = Commands(RecipeStore(folder, self.ledger, [], {}), frames, lambda *_: None)
        page = Page(lambda: self.views, self.ledger, frames, commands, access, self.programs.get, Overview, ())
        super().__init__(page, access, config)

    def _committed(self, results: list[ResultOut]) -> None:
        self.page.live.committed(results)
        self.results += results

    def judge(self, station: str, number: int, *, failed: bool = False) -> None:
        """A result in the ledger."""
        there = len(self.results)
        self.ledger.submit([entry(station, number, mask=b"png" if failed else None)])
        wait_for(lambda: len(self.results) > there, "the commit")

    def close(self) -> None:
        super().close()
        self.ledger.close()
