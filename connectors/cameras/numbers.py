"""Frame numbers that go on where the wire's own wrap."""


class BlockCounter:
    """Frame numbers that go on where GigE Vision's 16-bit block ids wrap from 65535 to 1. 64-bit ids pass unchanged."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._wraps = 0
        self._unnumbered = 0

    def number(self, block_id: int) -> int:
        """The number of the frame with this block id; ids come in order, lost ones left out."""
        last = self._last
        if last is not None and last <= 0xFFFF and block_id < last - 0x7FFF:
            self._wraps += 1
        self._last, self._unnumbered = block_id, 0
        return block_id + self._wraps * 0xFFFF

    def next_number(self) -> int:
        """The number for a frame that came without an id."""
        self._unnumbered += 1
        return (-1 if self._last is None else self._last + self._wraps * 0xFFFF) + self._unnumbered
