"""How the daemon is: for probes, the watchdog, people and Prometheus."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import Any

from config.schema import Config
from connectors import scraped
from connectors.tls import expiry_of, tls_use
from daemon.exposure import exposures
from daemon.inspector import Inspector
from daemon.ledger import Ledger
from daemon.line import Line, StationView
from daemon.outbox import outbox_totals
from daemon.publisher import Publisher
from daemon.reload import Reloader

STUCK_S = 60.0
"""A part of the pipeline that makes no progress for so long is stuck: the daemon ends with exit 1 and is started again."""


class Health:
    """Asked from any thread."""

    def __init__(
        self,
        config: Config,
        version: str,
        ledger: Ledger,
        publisher: Publisher,
        lines: Mapping[str, Line],
        reloader: Reloader,
    ) -> None:
        """lines: filled while the daemon starts."""
        self._config = config
        self._reloader = reloader
        self._version = version
        self._ledger = ledger
        self._publisher = publisher
        self._lines = lines
        self.inspector: Inspector | None = None
        """Once it is there."""
        self.broken: str | None = None
        """Why the daemon gives up."""

    def views(self) -> list[StationView]:
        """Every station as shown to people."""
        return [line.view() for line in list(self._lines.values())]

    def status(self) -> dict[str, Any]:
        """For GET /api/status."""
        well, alive = self.alive()
        stations = {view.station: {key: value for key, value in vars(view).items() if key != "station"} for view in self.views()}
        publisher = self._publisher
        broker = {"connected": publisher.connected, "trouble": publisher.trouble, "tls": tls_use(self._config.mqtt)}
        told = {"stations": stations, "broker": broker, "warnings": exposures(self._config)}
        told["configuration"] = self._reloader.view()
        ready, detail = self.ready()
        return {**alive, "ready": ready, "ledger": detail["ledger"], **told, "alive": well}

    def configuration(self) -> dict[str, Any]:
        """How the configuration file was read last: see `Reloader.view`."""
        return self._reloader.view()

    @property
    def broker_trouble(self) -> str | None:
        """Why the broker is not connected, None while it is."""
        return self._publisher.trouble

    def alive(self) -> tuple[bool, dict[str, Any]]:
        """Whether the pipeline makes progress."""
        trouble = self.broken
        if trouble is None and self.inspector is not None:
            now_s = time.monotonic()
            idle_s = {
                "inspector": self.inspector.idle_s(),
                "ledger": now_s - self._ledger.last_progress_s,
            }
            for name, line in list(self._lines.items()):
                idle_s[f"station {name}"] = line.station.stuck_s(now_s)
            part, longest_s = max(idle_s.items(), key=lambda item: item[1])
            if longest_s > STUCK_S:
                trouble = f"{part} has made no progress for {longest_s:.0f} s"
            elif not self._publisher.running:
                trouble = "the publisher has ended"
        return trouble is None, {
            "status": "ok" if trouble is None else "failed",
            "version": self._version,
            "trouble": trouble,
        }

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether every station can give verdicts."""
        views = self.views()
        well = bool(views) and all(view.state in ("ContinuousExecution", "Halted") for view in views)
        well = well and not self._ledger.failing and self.alive()[0]
        stations = {view.station: {"state": view.state, "reason": view.reason} for view in views}
        ledger = "failing: its disk takes no commit" if self._ledger.failing else "ok"
        return well, {"status": "ready" if well else "not ready", "stations": stations, "ledger": ledger}

    def summary(self) -> str:
        """In one line, for systemd."""
        states = ", ".join(f"{view.station}: {view.state}" for view in self.views())
        ledger = "; ledger failing: disk full?" if self._ledger.failing else ""
        file = "; the configuration file is refused: see the log" if self._reloader.refused else ""
        return f"{states}; broker {'connected' if self._publisher.connected else 'away'}{ledger}{file}"

    def readings(self) -> Iterator[scraped.Reading]:
        """What is read at each scrape, on the HTTP thread."""
        for line in list(self._lines.values()):
            yield from line.readings()
        yield scraped.LEDGER_FAILING.of(self._ledger.failing)
        # A file that cannot be read just now must not take the other metrics along.
        with suppress(sqlite3.Error), closing(self._ledger.reader()) as reader:
            outbox = outbox_totals(reader)
            yield scraped.OUTBOX_DEPTH.of(outbox.rows)
            yield scraped.OUTBOX_BYTES.of(outbox.bytes)
            yield scraped.OUTBOX_AGE.of(max(0.0, time.time() - outbox.oldest_ns / 1e9) if outbox.oldest_ns is not None else 0.0)
        tls = self._config.mqtt.tls
        if tls is not None and tls.certificate_file is not None and (expiry := expiry_of(tls.certificate_file)) is not None:
            yield scraped.CERTIFICATE_EXPIRY.of(expiry.timestamp())
