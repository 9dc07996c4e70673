"""What a check of `aprilcam doctor` says, and what it is told to look at."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from config.errors import ConfigError
from config.schema import Config, StoreConfig
from daemon.client import daemon_runs

Status = Literal["ok", "skipped", "warn", "fail"]
"""From best to worst. `skipped`: there is nothing to look at, and `found` says why."""

AS_DAEMON = "Run it as the daemon's user: sudo -u aprilcam aprilcam doctor"


@dataclass(frozen=True)
class Finding:
    """One thing that a check found. `mend` is empty where there is nothing to do."""

    status: Status
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Situation:
    """What is looked at.

    root: where /proc, /sys and the like are read: `/`, or a copy of them.
    config: the configuration, None: the machine alone. trouble: why the configuration that was named cannot be used.
    """

    root: Path = Path("/")
    config_path: Path | None = None
    config: Config | None = None
    trouble: ConfigError | None = None

    @cached_property
    def daemon_runs(self) -> bool:
        """Whether a daemon of this configuration runs now, without one the daemon of the usual state folder: nothing that it
        uses may be touched."""
        store = self.config.store if self.config is not None else StoreConfig()
        return daemon_runs(store.path)

    def read(self, path: str) -> str | None:
        """The text of a file below the root, without the space around; None where it is not there."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The number in a file below the root; None where there is none."""
        text = self.read(path)
        return int(text) if text is not None and text.removeprefix("-").isdigit() else None


@dataclass(frozen=True)
class Check:
    """A check, by name. Past `limit_s` it has failed, whatever it is still waiting for."""

    name: str
    look: Callable[[Situation], Iterable[Finding]]
    limit_s: float = 10.0


@dataclass(frozen=True)
class Report:
    """What each check found, in their order."""

    findings: tuple[tuple[str, Finding], ...] = field(default=())

    @property
    def worst(self) -> Status:
        """`ok`, `warn` or `fail`; what was skipped is well."""
        found = {finding.status for _, finding in self.findings}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"
