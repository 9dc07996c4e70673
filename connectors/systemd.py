"""The service manager's notify protocol (sd_notify(3)): READY, RELOADING, STATUS, WATCHDOG, STOPPING.

Silent where there is none.
"""

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Speaks to $NOTIFY_SOCKET."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # "@" is the abstract namespace, spelt with a leading NUL in the socket call.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        watchdog_us = environment.get("WATCHDOG_USEC", "")
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us.isdigit() and for_us else None
        """How often the manager wants to hear from us (at the latest), None when it does not watch."""

    def _send(self, text: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:  # the manager going away must not stop inspection, and there is nobody left to tell
            self.close()

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ready(self) -> None:
        """Start-up, or a reload, is done."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The configuration is read again; `ready` follows. Type=notify-reload wants the clock, which others pass over."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """The pipeline makes progress."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Stop has begun."""
        self._send("STOPPING=1")
