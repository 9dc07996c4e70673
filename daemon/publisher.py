"""The publisher: drains the outbox to the broker, in order, and keeps the retained topics true.

One thread. Nothing here is waited for by the inspection path: the ledger wakes it, the broker's acknowledgements go back
to the ledger.
"""

import itertools
import logging
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from config.errors import MqttError
from config.schema import MqttConfig
from connectors.contract import Topics
from connectors.mqtt import Incoming, MqttConnection
from connectors.tls import CertificateWatch
from daemon.abridge import abridged, read_result
from daemon.ledger import Ledger
from daemon.losses import GivenUp, Losses, packet_bytes
from daemon.outbox import LossReason, OutboxRow, What, outbox_after
from daemon.suspicion import Suspicion

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
FAREWELL_S = 2.0
STABLE_S = 5.0
FAREWELL = -1
"""Stands for the farewell where outbox ids stand for messages."""
REPLIES = 256
"""Replies that may wait for the broker; past it the oldest is given up, and its command may be sent again."""
SETTLE_S = 1.0
"""How long a connect waits for the ledger to take out what was acknowledged before; a full disk holds up only the outbox."""
RETRY_S = (0.5, 15.0)
"""First and longest wait between two attempts to connect; each wait doubles, with jitter so that daemons do not storm."""


class PublishObserver(Protocol):
    """Who is told how publishing goes (metrics)."""

    def mqtt_connected(self, connected: bool) -> None:
        """The connection came or went."""

    def published(self, latency_s: float) -> None:
        """A message was acknowledged, this long after it was committed."""

    def lost(self, what: str, reason: str) -> None:
        """A message was given up."""


class Inbox(Protocol):
    """Who takes commands that come over the same connection."""

    topic_filter: str

    def receive(self, message: Incoming) -> None:
        """On the connection's thread: must return at once."""


@dataclass(frozen=True)
class Reply:
    """An answer to a command, sent once; it does not outlive the daemon."""

    topic: str
    payload: bytes
    correlation: bytes | None


class Publisher:
    """Owner of the broker connection. `wake`, `retain` and `reply` may be called from any thread."""

    def __init__(
        self,
        config: MqttConfig,
        ledger: Ledger,
        will: tuple[str, bytes],
        birth: Callable[[], dict[str, bytes]],
        observer: PublishObserver,
        inbox: Inbox | None = None,
        losses: Losses | None = None,
    ) -> None:
        """`will` is (topic, payload) that the broker sends when we vanish; `birth` gives every retained message, asked for
        on each connect. `inbox` gets what comes on its topics. `losses`: where the
        ledger bounds its outbox with them; left out, the publisher has its own."""
        self._config = config
        self._ledger = ledger
        self._will = will
        self._birth = birth
        self._observer = observer
        self._inbox = inbox
        self._replies: deque[Reply] = deque(maxlen=REPLIES)
        self._topics = Topics(config.prefix)
        self._losses = losses or Losses(self._topics, observer.lost, lambda topic, last: self.retain(topic, last.encode()))
        self._abridging: Future[GivenUp] | None = None
        """Set while the ledger makes messages fit that are too large for the broker: nothing behind them is sent before."""
        self._tell_first = False
        self._outbox_window = config.in_flight
        self._suspicion = Suspicion()
        self._settled: Future[None] = Future()
        self._masks_refused = False
        self._others = itertools.count(FAREWELL - 1, -1)
        self._told: dict[int, str] = {}
        """Topics of retained messages and replies that are on their way, by token."""
        self._refusals: set[tuple[str, str]] = set()
        """(kind of topic, reason) that were logged since the connection stands: not each of thousands."""
        self._wake = threading.Condition()
        self._work = False
        self._stopping = False
        self._lost: str | None = None
        self._retained: dict[str, bytes] = {}
        self._farewell: tuple[str, bytes] | None = None
        self._read_to_end = False
        self._in_flight: dict[int, OutboxRow] = {}
        self._reader: sqlite3.Connection | None = None
        self._unread: deque[OutboxRow] = deque()
        self._cursor = 0
        self.connected = False
        self.trouble: str | None = "not connected yet"
        self.attempted = threading.Event()
        self._certificates = CertificateWatch(None)
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin to connect and publish."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def wake(self) -> None:
        """The outbox has something new."""
        with self._wake:
            self._work, self._read_to_end = True, False
            self._wake.notify()

    def retain(self, topic: str, payload: bytes) -> None:
        """Publish a retained message, after what is committed where the window allows; only the newest per topic is sent."""
        with self._wake:
            self._retained[topic] = payload
            self._work = True
            self._wake.notify()

    def reply(self, reply: Reply) -> None:
        """Send an answer, now or once the broker is back."""
        with self._wake:
            full = len(self._replies) == REPLIES
            self._replies.append(reply)
            self._work = True
            self._wake.notify()

        if full:
            self._losses.lost("reply", "outbox_full")

    def reload(self) -> None:
        """Look at the certificates now: a person says that they were renewed."""
        self._certificates.hurry()

    def stop(self, farewell: tuple[str, bytes], drain_s: float) -> None:
        """Send what is left for at most `drain_s`, then the retained farewell, and disconnect cleanly."""
        deadline_s = time.monotonic() + drain_s
        with self._wake:
            while self.connected and time.monotonic() < deadline_s and not (self._read_to_end and not self._in_flight):
                self._wake.wait(0.02)
            self._farewell = farewell
            self._stopping = True
            self._work = True
            self._wake.notify()
        self._thread.join(CONNECT_TIMEOUT_S + FAREWELL_S + 3)

    def _run(self) -> None:
        self._reader = self._ledger.reader()
        wait_s = RETRY_S[0]
        while not self._stopping:
            started_s = time.monotonic()
            try:
                self._cycle()
            except Exception as error:  # whatever it is, results must go out again once it has passed
                log.exception("publishing failed; it is tried again")
                self._away(f"{type(error).__name__}: {error}")
            # A broker that takes us and drops us again is no reason to come back faster.
            wait_s = RETRY_S[0] if time.monotonic() - started_s > STABLE_S else min(wait_s * 2, RETRY_S[1])
            with self._wake:
                self._wake.wait_for(lambda: self._stopping, wait_s / 2 * random.uniform(0.8, 1.2))  # noqa: S311
        self._reader.close()

    def _cycle(self) -> None:
        """One connection, from its beginning to its end."""
        # What was acknowledged on the last connection must have left the outbox before it is read again.
        self._settled = self._ledger.call(lambda _: None)
        self._settled.add_done_callback(lambda _: self.wake())
        with suppress(FutureTimeout):
            self._settled.result(SETTLE_S)
        with self._wake:
            self._suspicion.connected()
            self._told.clear()
            self._masks_refused = False
            self._lost = None
            self._cursor = 0
            self._unread.clear()
            self._in_flight.clear()
            self._read_to_end = False
        self._abridging = None
        self._refusals.clear()
        self._certificates = CertificateWatch(self._config.tls)
        try:
            connection = MqttConnection(
                self._config,
                self._will,
                self._acknowledged,
                self._lose,
                self._inbox.receive if self._inbox is not None else lambda _: None,
            )
            connection.open(CONNECT_TIMEOUT_S)
        except MqttError as error:
            if self.trouble != str(error):
                log.warning("%s Inspection goes on, results wait in the outbox.", error)
            self.trouble = str(error)
            return
        finally:
            self.attempted.set()
        try:
            if not self._stopping:
                self._greet(connection)
            self._serve(connection)
        finally:
            connection.close()

    def _greet(self, connection: MqttConnection) -> None:
        with self._wake:
            self.connected, self.trouble = True, None
            self._retained.clear()
            self._work = True
        if self._inbox is not None:
            # Before the birth: who sees us online may command at once.
            connection.subscribe(self._inbox.topic_filter)
        birth = self._birth()
        with self._wake:
            self._retained = {**birth, **self._retained}
        self._tell_first = True
        self._observer.mqtt_connected(True)
        log.info("connected to broker %s:%d", self._config.host, self._config.port)

    def _serve(self, connection: MqttConnection) -> None:
        while True:
            if self._certificates.renewed() and not self._stopping:
                self._settle()
                self._away("connecting anew")
                log.info("the certificates were renewed: connecting to the broker anew")
                return
            with self._wake:
                self._wake.wait_for(lambda: self._work or self._lost is not None, 1.0)
                self._work = False
                lost, stopping = self._lost, self._stopping
            if lost is not None:
                break
            if self._tell_first:
                self._tell(connection)
            if not stopping:
                self._drain(connection)
            self._tell(connection)
            # Where only one message may be on its way, results and states take turns.
            self._tell_first = connection.window == 1 and not self._tell_first
            if stopping:
                self._say_farewell(connection)
                break
        self._away(f"connection lost: {lost}" if lost else "stopped")
        if lost is not None:
            log.warning("connection to the broker lost (%s); results wait in the outbox", lost)
            with self._wake:
                if not connection.putting_off:
                    self._suspicion.lost(None)
                elif (token := connection.put_off) is not None:
                    self._suspicion.lost(self._told.get(token, token))

    def _tell(self, connection: MqttConnection) -> None:
        """Send retained messages and replies, as many as have room."""
        while connection.room > 0:
            with self._wake:
                held = self._abridging is not None  # the newest result may be about to lose its mask
                topic = next((own for own in self._retained if not (held and self._topics.parse(own)[1] == "last")), None)
                payload = self._retained.pop(topic) if topic is not None else b""
                reply = self._replies.popleft() if topic is None and self._replies and self._lost is None else None
            if topic is not None:
                self._send_retained(connection, topic, payload)
            elif reply is not None:
                size = packet_bytes(reply.topic, reply.payload, len(reply.correlation or b"") + 3)
                if (limit := self._limit(connection)) is not None and size > limit:
                    self._losses.lost("reply", "too_large")
                else:
                    token = self._note_other(reply.topic, size)
                    connection.publish(reply.topic, reply.payload, token=token, correlation=reply.correlation)
            else:
                return

    def _send_retained(self, connection: MqttConnection, topic: str, payload: bytes) -> None:
        limit = self._limit(connection)
        kinds: dict[str, What] = {"last": "last", "overlay": "overlay"}
        what = kinds.get(self._topics.parse(topic)[1], "state")
        if self._suspicion.refused(topic):
            self._losses.lost(what, "refused")
            return
        if limit is not None and packet_bytes(topic, payload) > limit:
            result = read_result(payload) if what == "last" else None
            fitting = abridged(result, limit - packet_bytes(topic, b"")) if result is not None else None
            if fitting is None:
                self._losses.lost(what, "too_large")
                return
            payload = fitting[1]
        connection.publish(topic, payload, retain=True, token=self._note_other(topic, packet_bytes(topic, payload)))

    def _note_other(self, topic: str, size: int) -> int:
        """A token for a message that is not of the outbox."""
        token = next(self._others)
        with self._wake:
            self._told[token] = topic
            self._suspicion.sent(token, size)
        return token

    def _limit(self, connection: MqttConnection) -> int | None:
        """The largest packet that the broker says, or seems, to take."""
        return min(
            (limit for limit in (connection.maximum_packet_bytes, self._suspicion.limit) if limit is not None), default=None
        )

    def _settle(self) -> None:
        """Let what is on its way be acknowledged, so that it is not sent twice."""
        with self._wake:
            self._wake.wait_for(lambda: not self._in_flight or self._lost is not None, FAREWELL_S)

    def _say_farewell(self, connection: MqttConnection) -> None:
        """Wait until the broker has it: a DISCONNECT that overtakes it would leave `online` behind for ever."""
        if self._farewell is None:
            return
        with self._wake:
            self._wake.wait_for(lambda: connection.room > 0 or self._lost is not None, FAREWELL_S)
            self._in_flight[FAREWELL] = OutboxRow(FAREWELL, self._farewell[0], self._farewell[1], time.time_ns())
        connection.publish(*self._farewell, retain=True, token=FAREWELL)
        with self._wake:
            self._wake.wait_for(lambda: FAREWELL not in self._in_flight or self._lost is not None, FAREWELL_S)

    def _away(self, trouble: str) -> None:
        with self._wake:
            self.connected, self.trouble = False, trouble
            self._wake.notify_all()
        self._observer.mqtt_connected(False)

    def _drain(self, connection: MqttConnection) -> None:
        """Send until nothing in the outbox is unsent, or the window is full."""
        if not self._settled.done():
            return
        if self._abridging is not None:
            if not self._abridging.done():
                return
            self._abridging.result()
            self._abridging = None
        # Never the last place: states and replies must get through while an outbox is drained.
        window = self._outbox_window = min(self._config.in_flight, max(1, connection.window - 1))
        while True:
            if not self._unread and not self._read_more(self._limit(connection)):
                return
            while self._unread:
                with self._wake:
                    if self._lost is not None or self._stopping or len(self._in_flight) >= window or connection.room <= 0:
                        return
                    if not self._unread:
                        break
                    row = self._unread.popleft()
                    self._in_flight[row.id] = row
                    self._suspicion.sent(row.id, packet_bytes(row.topic, row.payload))
                self._cursor = row.id
                expiry_s = self._config.mask_expiry_s if self._topics.parse(row.topic)[1] == "mask" else None
                connection.publish(row.topic, row.payload, token=row.id, expiry_s=expiry_s)

    def _read_more(self, limit: int | None) -> bool:
        """Read on in the outbox, up to what the broker will not take: that the ledger makes fit, or gives up, first. Whether
        there is something to send now."""
        assert self._reader is not None  # noqa: S101 - opened by _run
        rows = outbox_after(self._reader, self._cursor, 4 * self._config.in_flight)
        refused = [row.id for row in rows if self._is_refused(row)]
        too_large = [row.id for row in rows if limit is not None and packet_bytes(row.topic, row.payload) > limit]
        first = min((place for place, row in enumerate(rows) if row.id in {*refused, *too_large}), default=len(rows))
        if not rows:
            with self._wake:
                self._read_to_end = not self._work
        elif first == 0:
            most = limit or 0

            def make_fit(connection: sqlite3.Connection) -> GivenUp:
                given_up = self._losses.give_up(connection, refused, "refused")
                return given_up.and_(self._losses.abridge(connection, too_large, most))

            self._abridging = self._ledger.call(make_fit)
            self._abridging.add_done_callback(self._given_up)
        else:
            self._unread.extend(rows[:first])
        return bool(self._unread)

    def _is_refused(self, row: OutboxRow) -> bool:
        return self._suspicion.refused(row.id) or (self._masks_refused and self._topics.parse(row.topic)[1] == "mask")

    def _give_up(self, outbox_id: int, reason: LossReason) -> None:
        future = self._ledger.call(lambda connection: self._losses.give_up(connection, [outbox_id], reason))
        future.add_done_callback(self._given_up)

    def _given_up(self, future: "Future[GivenUp]") -> None:
        """On the ledger's thread."""
        if future.exception() is None:
            self._losses.committed(future.result())
        self.wake()

    def _acknowledged(self, outbox_id: int | None, refusal: str | None) -> None:
        with self._wake:
            row = self._in_flight.pop(outbox_id, None) if outbox_id is not None else None
            self._suspicion.answered(outbox_id)
            other = self._told.pop(outbox_id, None) if outbox_id is not None else None
            if row is not None and refusal is not None and self._topics.parse(row.topic)[1] == "mask":
                # The results of those that come are to name none. Those that were read for sending are read anew.
                self._masks_refused = True
                self._unread.clear()
            # Half a window at a time: the publisher is not woken for each message of a long outbox.
            more = self._unread and len(self._in_flight) <= self._outbox_window // 2
            self._work = bool(self._work or more or self._retained or self._replies)
            if self._work or outbox_id == FAREWELL or self._stopping:
                self._wake.notify_all()
        if refusal is not None:
            # It would be refused for ever, and everything behind it would wait. The ledger still has the result.
            topic = row.topic if row is not None else other
            kind = self._topics.parse(topic)[1] if topic is not None else "message"
            if (kind, refusal) not in self._refusals:
                self._refusals.add((kind, refusal))
                log.error("the broker refuses us a %s: %s. Check its access list.", kind, refusal)
            if other is not None:
                self._losses.lost("other", "refused")
            elif outbox_id is not None and outbox_id != FAREWELL:
                self._give_up(outbox_id, "refused")
        elif outbox_id is not None and outbox_id > FAREWELL:
            self._ledger.acknowledge(outbox_id)
            if row is not None:
                self._observer.published(max(0.0, (time.time_ns() - row.enqueued_ns) / 1e9))

    def _lose(self, reason: str) -> None:
        with self._wake:
            self._lost = reason
            self._wake.notify_all()
