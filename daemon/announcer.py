"""What the daemon tells: results, events and states, to the broker, to Prometheus and to the log."""

import logging
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import get_args

from config.schema import MqttConfig
from connectors.contract import EventKind, EventOut, ResultOut, StatusOut, Topics
from connectors.metrics import Metrics
from connectors.tls import tls_use
from daemon.builder import Detail
from daemon.edge_node import EdgeNode
from daemon.ledger import Ledger, last_document
from daemon.line import Line
from daemon.losses import Losses
from daemon.outbox import LossReason, Message, What, put_in_outbox, take_losses
from daemon.publisher import Inbox, Publisher
from daemon.station import Station

log = logging.getLogger(__name__)

TELL_LOSSES_EVERY_S = 5.0
"""Losses of a station are gathered so long: one event tells of them."""


class Announcer:
    """Owner of the publisher. May be called from any thread."""

    def __init__(
        self,
        config: MqttConfig,
        version: str,
        ledger: Ledger,
        metrics: Metrics,
        inbox: Inbox,
        losses: Losses,
        stations: Mapping[str, Station],
        lines: Mapping[str, Line],
    ) -> None:
        """stations, lines: by name; they are added while the daemon starts."""
        self.topics = Topics(config.prefix)
        self._version = version
        self._tls = tls_use(config)
        self._ledger = ledger
        self._metrics = metrics
        metrics.expect(metrics.messages_lost, get_args(What), get_args(LossReason))
        self._stations = stations
        self._lines = lines
        self._since = datetime.now(UTC)
        self._telling = threading.Lock()
        """Held from reading a state to handing it over: an older one must not follow a newer one."""
        self._overlays: dict[str, bytes] = {}
        self._gone: set[str] = set()
        """Stations that were removed: nothing retained of them is to be left at the broker."""
        self.stopping = False
        """Whether every state is told as Halted."""
        self.publisher = Publisher(config, ledger, self.status("offline"), self._birth, metrics, inbox, losses)
        self._losses = losses
        losses.correct = self.newest
        self._told_losses_s = -TELL_LOSSES_EVERY_S
        self.edge_node: EdgeNode | None = None
        """Hears results and states too, where Sparkplug is configured."""

    def results(self, results: Sequence[ResultOut]) -> None:
        """They are committed. On the ledger's thread."""
        newest: dict[str, ResultOut] = {}
        for result in results:
            newest[result.station] = result
            self._metrics.result(result)
        for station, result in newest.items():
            self.newest(self.topics.last(station), result)
        self.publisher.wake()
        if self.edge_node is not None:
            self.edge_node.results(results)

    def newest(self, topic: str, result: ResultOut) -> None:
        """What is retained on a station's topic `last`; nothing for one that was removed."""
        if result.station in self._lines:
            self.publisher.retain(topic, result.encode())

    def overlay(self, station: str, jpeg: bytes) -> None:
        """A picture of a station's newest part."""
        with self._telling:
            if station in self._lines:
                self._overlays[station] = jpeg
                self.publisher.retain(self.topics.overlay(station), jpeg)

    def clear_overlay(self, station: str) -> None:
        """Its overlay was turned off."""
        with self._telling:
            if self._overlays.pop(station, None) is not None:
                self.publisher.retain(self.topics.overlay(station), b"")

    def bank_corrupt(self, recipe: str, bank: str, reason: str) -> None:
        """A stored bank is damaged."""
        self.recipe_event(recipe, "bank_corrupt", {"bank": bank, "reason": reason[:500]})

    def recipe_event(self, recipe: str, kind: EventKind, detail: Detail) -> None:
        """To metrics, and to each station of the recipe, or to all where none has it."""
        match kind:
            case "build_started":
                self._metrics.add_recipe(recipe)
                self._metrics.build_done(recipe, 0)
            case "build_progress":
                self._metrics.build_done(recipe, float(detail["share"] or 0))
                if not self.publisher.connected:
                    return  # nobody wants to hear it afterwards
            case "bank_built":
                self._metrics.build_ended(recipe, "built", float(detail["seconds"] or 0))
            case "build_failed":
                self._metrics.build_ended(recipe, "failed", None)
        stations = list(self._stations.values())
        names = [station.name for station in stations if station.program.recipe.name == recipe]
        self._publish(names or [station.name for station in stations], recipe, kind, detail)

    def station_event(self, station: str, recipe: str, kind: EventKind, detail: Detail) -> None:
        """To one station."""
        if station not in self._stations:
            return  # it was removed meanwhile
        if kind == "recipe_prepared":
            self._metrics.add_station(station, recipe)
        self._publish([station], recipe, kind, detail)

    def tell_losses(self) -> None:
        """What was given up, in an event for each station, once the broker is there to hear it. Called now and then."""
        now_s = time.monotonic()
        if not self._losses.untold or not self.publisher.connected or now_s - self._told_losses_s < TELL_LOSSES_EVERY_S:
            return
        self._told_losses_s, self._losses.untold = now_s, False
        self._ledger.call(self._losses_to_events).add_done_callback(self._losses_told)

    def _losses_told(self, future: "Future[None]") -> None:
        self._losses.untold = self._losses.untold or future.exception() is not None
        self.publisher.wake()

    def _losses_to_events(self, connection: sqlite3.Connection) -> None:
        """In one transaction: what is counted as told has its event in the outbox."""
        messages = []
        for name, detail in take_losses(connection).items():
            station = self._stations.get(name)
            recipe = station.program.recipe.name if station is not None else ""
            messages += self._messages([name], recipe, "messages_lost", detail)
        put_in_outbox(connection, messages)

    def _publish(self, stations: Sequence[str], recipe: str, kind: EventKind, detail: Detail) -> None:
        messages = self._messages(stations, recipe, kind, detail)
        self._ledger.publish(messages).add_done_callback(lambda _: self.publisher.wake())

    def _messages(self, stations: Sequence[str], recipe: str, kind: EventKind, detail: Detail) -> list[Message]:
        now = datetime.now(UTC)
        return [
            Message(
                self.topics.event(station),
                EventOut(station=station, recipe=recipe, kind=kind, detail=detail, created_at=now).encode(),
            )
            for station in stations
        ]

    def forget(self, station: str) -> None:
        """It has no line any more, and its results are committed: clear what is retained of it."""
        with self._telling:
            self._gone.add(station)
            self._overlays.pop(station, None)
            for topic, nothing in self._cleared(station).items():
                self.publisher.retain(topic, nothing)
            if self.edge_node is not None:
                self.edge_node.remove(station)

    def _cleared(self, station: str) -> dict[str, bytes]:
        topics = self.topics
        return dict.fromkeys((topics.state(station), topics.last(station), topics.overlay(station)), b"")

    def state(self, station: str, *, quietly: bool = False) -> None:
        """Tell how a station is, where that has changed; nothing for one that has no line (any more)."""
        with self._telling:
            line = self._lines.get(station)
            if line is None:
                return
            self._gone.discard(station)
            document = line.changed_state(stopping=self.stopping)
            if document is None:
                return
            self.publisher.retain(self.topics.state(station), document.encode())
            if self.edge_node is not None:
                self.edge_node.state(document)
        if not self.stopping and not quietly:
            level = logging.INFO if document.state in ("ContinuousExecution", "Halted") else logging.WARNING
            reason = f" ({document.reason})" if document.reason else ""
            log.log(level, "station %s: %s%s", station, document.state, reason)

    def status(self, status: str) -> tuple[str, bytes]:
        """(topic, payload) of the daemon's own status."""
        document = StatusOut.model_validate({"status": status, "version": self._version, "since": self._since, "tls": self._tls})
        return self.topics.status, document.encode()

    def _birth(self) -> dict[str, bytes]:
        """Every retained message, for a broker that may have lost them. On the publisher's thread."""
        topic, online = self.status("online")
        birth = {topic: online}
        for station in self._gone.copy():
            birth |= self._cleared(station)
        birth |= {self.topics.overlay(station): jpeg for station, jpeg in list(self._overlays.items())}
        reader = self._ledger.reader()
        try:
            for name, line in list(self._lines.items()):
                if line.published is not None:
                    birth[self.topics.state(name)] = line.published.encode()
                if (document := last_document(reader, name)) is not None:
                    birth[self.topics.last(name)] = document
        finally:
            reader.close()
        return birth
