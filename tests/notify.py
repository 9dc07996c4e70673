"""A service manager's notify socket, of which a daemon is told by its environment."""

import socket
import threading
import time
from pathlib import Path
from types import TracebackType


class Manager:
    """Hears what a service tells of itself (sd_notify(3))."""

    def __init__(self, address: Path, watchdog_s: float = 1.5) -> None:
        self.environment = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
        self.heard: list[str] = []
        """Each message, the oldest first."""
        self.heard_s: list[float] = []
        """When each was heard, monotonic."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        self._socket.settimeout(0.1)
        self._ended = False
        self._thread = threading.Thread(target=self._hear)

    def __enter__(self) -> "Manager":
        self._thread.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._ended = True
        self._thread.join()
        self._socket.close()

    def _hear(self) -> None:
        while not self._ended:
            try:
                message = self._socket.recv(65_536).decode()
            except TimeoutError:
                continue
            self.heard_s.append(time.monotonic())
            self.heard.append(message)

    def count(self, message: str) -> int:
        """How often it was heard."""
        return self.heard.count(message)

    @staticmethod
    def at_s(wall_s: float) -> float:
        """A moment of the wall clock on the clock of `heard_s`."""
        return wall_s - time.time() + time.monotonic()

    def last(self, variable: str) -> str:
        """Its newest value, empty before the first."""
        values = [text.partition("=")[2] for text in self.heard if text.startswith(f"{variable}=")]
        return values[-1] if values else ""
