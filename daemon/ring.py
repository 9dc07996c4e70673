"""A ring of frame slots in shared memory between a camera process and the daemon.

The memory is an anonymous file (memfd) whose descriptor is handed over a socket: it has no name that could be left
behind, and it is gone when the last process that maps it is gone. A page of flags, one byte a slot, stands before the
slots. Only the writer sets a flag (before it tells the reader of the slot), only the reader clears it.
"""

import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_SLOTS = 3
MAX_BYTES = 512 << 20
_FREE, _HELD = 0, 1
_PAGE = mmap.PAGESIZE


def _layout(slots: int, frame_bytes: int) -> tuple[int, int]:
    slot_bytes = -(-frame_bytes // _PAGE) * _PAGE
    return slot_bytes, _PAGE + slots * slot_bytes


def slots_for(frame_bytes: int, wanted: int) -> int:
    """How many slots a ring gets: as wanted, fewer when they would take more than 512 MiB, at least 3."""
    slot_bytes, _ = _layout(1, frame_bytes)
    return max(MIN_SLOTS, min(wanted, MAX_BYTES // slot_bytes))


class RingWriter:
    """The camera process's end, which makes the memory. Used by one thread."""

    def __init__(self, frame_bytes: int, slots: int) -> None:
        self.frame_bytes = frame_bytes
        self.slots = slots_for(frame_bytes, slots)
        self._slot_bytes, size = _layout(self.slots, frame_bytes)
        self.fd = os.memfd_create("aprilcam-ring", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self._memory = np.frombuffer(mmap.mmap(self.fd, size), np.uint8)

    def write(self, pixels: NDArray[np.uint8]) -> int | None:
        """Copy a frame into a free slot and return its index; None when the reader holds all slots.

        The lowest free slot is taken, so that memory nobody needs is never touched. Raises ValueError for a frame
        larger than the ring was made for.
        """
        if pixels.nbytes > self.frame_bytes:
            raise ValueError(f"a frame of {pixels.nbytes} bytes does not fit a slot of {self.frame_bytes}")
        free = np.flatnonzero(self._memory[: self.slots] == _FREE)
        if not len(free):
            return None
        slot = int(free[0])
        start = _PAGE + slot * self._slot_bytes
        np.copyto(self._memory[start : start + pixels.nbytes].reshape(pixels.shape), pixels)
        self._memory[slot] = _HELD
        return slot

    def close(self) -> None:
        """Let the descriptor go; the memory goes with the process."""
        os.close(self.fd)


class RingReader:
    """The daemon's end. Views outlive the reader: each keeps the mapping alive."""

    def __init__(self, fd: int, frame_bytes: int, slots: int) -> None:
        """Map the memory behind `fd`; the caller keeps the descriptor. Raises ValueError if it is too small."""
        self._slots = slots
        self._slot_bytes, size = _layout(slots, frame_bytes)
        self._map = mmap.mmap(fd, size)
        self._flags = np.frombuffer(self._map, np.uint8, count=slots)

    def view(self, slot: int, shape: Sequence[int]) -> NDArray[np.uint8]:
        """The pixels in a slot, read-only and uncopied; the slot is free again when the last array over them dies.

        Call it once for each message that names the slot. Raises ValueError for a slot or shape that is not the ring's.
        """
        count = int(np.prod(shape))
        if not 0 <= slot < self._slots or not 0 < count <= self._slot_bytes:
            raise ValueError(f"no frame of shape {tuple(shape)} in slot {slot} of {self._slots} x {self._slot_bytes} bytes")
        # NumPy shortens chains of views down to the first array over foreign memory, which is this one.
        whole = np.frombuffer(self._map, np.uint8, count=count, offset=_PAGE + slot * self._slot_bytes)
        whole.flags.writeable = False
        weakref.finalize(whole, _release, self._flags, slot).atexit = False
        return whole.reshape(tuple(shape))

    @property
    def held(self) -> int:
        """Slots that are written or still referred to."""
        return int(np.count_nonzero(self._flags))


def _release(flags: NDArray[np.uint8], slot: int) -> None:
    flags[slot] = _FREE
