"""A broker that hangs up without a word: which message it cannot take, so that it is not sent for ever.

MQTT 3.1.1 has no way to say a largest packet, and brokers of any version may end a connection over a message that their policy
forbids, or put it off each time. What is sent again at each connect would then stop all that is behind it.
"""

import logging
import time
from collections.abc import Hashable

log = logging.getLogger(__name__)

TIMES = 3
"""Connections in a row that must end over the same message."""
SHORT_S = 5.0
"""A connection that lived longer did not end over what is sent at its beginning."""
LEAST = 4_096
"""Bytes: no broker hangs up on smaller ones for their size, and a result without polygons has to get through."""
FORGET_S = 3_600.0
"""For so long a suspicion is acted on; then it is tried again."""


class Suspicion:
    """What is on its way, and what came of it. Used under its owner's lock."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._sent: dict[Hashable, int] = {}
        self._largest_taken = 0
        self._suspect: Hashable = None
        self._times = 0
        self._limit: int | None = None
        self._limit_until_s = 0.0
        self._refused: dict[Hashable, float] = {}

    def connected(self) -> None:
        """A new connection."""
        self._began_s = time.monotonic()
        self._sent.clear()

    def sent(self, message: Hashable, packet_bytes: int) -> None:
        """It is on its way."""
        self._sent[message] = packet_bytes

    def answered(self, message: Hashable) -> None:
        """The broker has it, or refused it in a word."""
        self._largest_taken = max(self._largest_taken, self._sent.pop(message, 0))

    def lost(self, put_off: Hashable | None) -> None:
        """The connection ended; `put_off`: over this message, for which the broker asked to try again."""
        if put_off is None and time.monotonic() - self._began_s > SHORT_S:
            self._suspect, self._times, self._largest_taken = None, 0, 0
            return
        largest = max(self._sent, key=lambda message: self._sent[message], default=None)
        if put_off is None and (largest is None or self._sent[largest] <= max(self._largest_taken, LEAST)):
            self._suspect, self._times = None, 0
            return
        suspect = ("put off", put_off) if put_off is not None else ("too large", self._sent.get(largest, 0))
        self._times = self._times + 1 if suspect == self._suspect else 1
        self._suspect = suspect
        if self._times < TIMES:
            return
        self._suspect, self._times = None, 0
        until_s = time.monotonic() + FORGET_S
        if put_off is not None:
            self._refused[put_off] = until_s
            return
        size = self._sent.get(largest, 0)
        # Half of it, so that a few hang-ups find what the broker takes; what it has taken, it takes.
        self._limit, self._limit_until_s = max(self._largest_taken, size // 2, LEAST), until_s
        told = "the broker hung up %d times on a message of %d bytes: larger ones than %d are not sent for an hour. "
        log.warning(told + "Set [mqtt] max_packet_bytes to what it takes.", TIMES, size, self._limit)

    @property
    def limit(self) -> int | None:
        """The largest packet that is worth trying, in bytes; None: any."""
        return self._limit if time.monotonic() < self._limit_until_s else None

    def refused(self, message: Hashable) -> bool:
        """Whether it was put off so often that this is a refusal."""
        return time.monotonic() < self._refused.get(message, 0.0)
