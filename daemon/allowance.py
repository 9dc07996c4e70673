"""How often something may be asked for: a token bucket."""

import time

BURST_S = 2.0


class Allowance:
    """`per_s` a second, and two seconds' worth at once after a pause. One thread owns it."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._most = max(1.0, per_s * BURST_S)
        self._left = self._most
        self._at_s = time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed now."""
        now_s = time.monotonic()
        self._left = min(self._most, self._left + (now_s - self._at_s) * self.per_s)
        self._at_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
