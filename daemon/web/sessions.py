"""Who is logged in, and who tried too often. In memory: a restart logs everybody out."""

import ipaddress
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from daemon.web.users import Role

Clock = Callable[[], float]
"""Seconds, never going back."""
MOST_S, IDLE_S = 12 * 3_600.0, 2 * 3_600.0
MOST_SESSIONS = 1_000
FREE_FAILURES = 5
MOST_WAIT_S = 900.0
FORGET_S = 3_600.0
MOST_ADDRESSES = 1_000


@dataclass
class Session:
    """A login; `born` and `used` in seconds of the clock."""

    name: str
    role: Role
    born: float
    used: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)


class Sessions:
    """By their secret id of 256 bits. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, name: str, role: Role) -> str:
        """A new one; the id. The oldest goes where there are too many."""
        now, key = self._clock(), secrets.token_urlsafe(32)
        with self._lock:
            self._sessions[key] = Session(name, role, now, now)
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
        return key

    def find(self, key: str) -> Session | None:
        """None where it never was, was closed or has expired."""
        now = self._clock()
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                return None
            if now - session.born >= MOST_S or now - session.used >= IDLE_S:
                del self._sessions[key]
                return None
            session.used = now
            return session

    def close(self, key: str) -> None:
        """Whether or not there is one."""
        with self._lock:
            self._sessions.pop(key, None)


@dataclass
class _Failures:
    count: int
    last: float


class Attempts:
    """Five failed logins of an address are free; then each costs a wait, twice as long as the one before."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def begin(self, address: str) -> float:
        """Seconds to wait; 0: try now. A try counts as failed until `succeeded`, so that many at once gain nothing."""
        key, now = _network(address), self._clock()
        failures = self._failures.get(key)
        if failures is None or now - failures.last >= FORGET_S:
            failures = _Failures(0, now)
        over = failures.count - FREE_FAILURES
        wait = failures.last + min(2.0 ** min(over, 20), MOST_WAIT_S) - now if over >= 0 else 0.0
        if wait > 0:
            return wait
        self._failures[key] = _Failures(failures.count + 1, now)
        self._failures.move_to_end(key)
        while len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        return 0.0

    def succeeded(self, address: str) -> None:
        """Forget what failed."""
        self._failures.pop(_network(address), None)


def _network(address: str) -> str:
    """One customer of IPv6 has a /64 to choose addresses from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)
