"""Draws what pages show: one picture at a time, whoever asks, on a thread of its own. The cores belong to the inspection, a large
picture takes much memory, and however many wait, pages and probes have their threads."""

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

Made = TypeVar("Made")


class Drawing:
    """Awaited on the server's event loop."""

    def __init__(self) -> None:
        self._limiter: CapacityLimiter | None = None

    async def draw(self, make: Callable[[], Made]) -> Made:
        """What `make` gives, or raises, when it is its turn."""
        if self._limiter is None:
            self._limiter = CapacityLimiter(1)  # belongs to the server's event loop
        return await to_thread.run_sync(make, limiter=self._limiter)
