"""Reads the configuration file again when told to (SIGHUP), and takes what is otherwise; a bad file is refused whole.

The service manager hears when that begins and ends, /api/status tells how it went.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from config.errors import ConfigError, StoppingError
from config.schema import Config
from connectors.systemd import Notifier
from daemon.changes import Changes, compare
from daemon.maker import Progress

log = logging.getLogger(__name__)

STOP_S = 15.0
Apply = Callable[[Changes, Progress], dict[str, str]]
"""Takes changes; the recipes that could not be taught, with the reason."""


@dataclass(frozen=True)
class FileStatus:
    """How the configuration file was read last. in_force: as it is, but for what `needs_restart`. reading: it is being taken.
    refused: nothing of it was, for these `problems`, and what ran before goes on. partly: it was, but for these `problems`."""

    status: Literal["in_force", "reading", "refused", "partly"]
    read_at: datetime
    problems: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


class Reloader:
    """Owner of the thread that reloads. `running` is the configuration that is in force."""

    def __init__(
        self,
        config: Config,
        path: Path,
        read: Callable[[], Config],
        check: Callable[[Config], None],
        notifier: Notifier,
    ) -> None:
        """config: as it was read at the start. read: reads the file again. check: looks at what would run then, the sections
        that need a restart as they are. Both raise ConfigError."""
        self.running = config
        self._path = path
        self._read = read
        self._check = check
        self._notifier = notifier
        self._apply: Apply | None = None
        self._told = threading.Event()
        self._stopping = False
        self._status = FileStatus("in_force", datetime.now(UTC))
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    def start(self, apply: Apply) -> None:
        """Do what is told from now on."""
        self._apply = apply
        self._thread.start()

    def reload(self) -> None:
        """Read the file again; returns at once."""
        self._told.set()

    def stop(self) -> None:
        """Give up what is under way, at its next step."""
        self._stopping = True
        self._told.set()
        self._thread.join(STOP_S)

    @property
    def refused(self) -> bool:
        """Whether the file as it was read last is not in force."""
        return self._status.status in ("refused", "partly")

    def view(self) -> dict[str, Any]:
        """For /api/status."""
        status = self._status
        return {
            "file": str(self._path),
            "status": status.status,
            "read_at": status.read_at.isoformat(timespec="seconds"),
            "problems": list(status.problems),
            "needs_restart": list(status.needs_restart),
        }

    def _run(self) -> None:
        while True:
            self._told.wait()
            if self._stopping:
                return
            self._told.clear()
            self._notifier.reloading()
            try:
                self._reload()
            except StoppingError:
                return
            except Exception as error:  # whatever it is, the next file is to be read
                log.exception("the configuration could not be taken")
                self._status = replace(self._status, status="partly", problems=(f"{type(error).__name__}: {error}",))
            self._notifier.ready()

    def _progress(self, _what: str, _done: int, _total: int) -> None:
        if self._stopping:
            raise StoppingError("the daemon is stopping")

    def _reload(self) -> None:
        assert self._apply is not None  # noqa: S101 - the thread is started with it
        now, kept = datetime.now(UTC), self._status.needs_restart
        self._status = FileStatus("reading", now, (), kept)
        try:
            changes = compare(self.running, self._read())
            self._check(changes.config)
        except ConfigError as error:
            problems = tuple(str(problem) for problem in error.problems)
            log.error("%s is refused, what ran before goes on: %s", self._path, "; ".join(problems))  # noqa: TRY400
            self._status = FileStatus("refused", now, problems, kept)
            return
        except Exception as error:  # a file that breaks what reads it must not end us either
            log.exception("%s is refused, what ran before goes on", self._path)
            self._status = FileStatus("refused", now, (f"{type(error).__name__}: {error}",), kept)
            return
        self._status = FileStatus("reading", now, (), changes.needs_restart)
        log.info("%s is read again: %s", self._path, changes)
        if changes.needs_restart:
            log.warning("%s: changed, and needs a restart: %s", self._path, ", ".join(changes.needs_restart))
        untaught = self._apply(changes, self._progress)
        # A recipe that could not be taught is a new one to the next reload, which tries it again.
        taught = tuple(recipe for recipe in changes.config.recipes if recipe.name not in untaught)
        self.running = changes.config.model_copy(update={"recipes": taught})
        problems = tuple(f"recipe {recipe}: {reason}" for recipe, reason in untaught.items())
        self._status = FileStatus("partly" if problems else "in_force", now, problems, changes.needs_restart)
        log.info("%s is in force%s", self._path, " but for what is told above" if problems else "")
