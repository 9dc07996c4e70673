"""How many frames are judged at once, and how long a frame waits for others: as configured, else measured at the start."""

import time
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_S = 0.5
"""A batch that takes longer is not tried: nobody waits so long for a verdict to save some milliseconds."""
MOST = 64
REPEATS = 3
NO_GAIN = 1.05
"""A larger batch has to save so much of a frame's time: all its frames are done when the last one is."""
LEAST_WAIT_S = 1e-3
HALF = 0.5
"""Of what a pair would save is waited for: the other frame may not come."""


@dataclass(frozen=True)
class Batching:
    """Most frames of a batch, and how long its first one waits for others when there are several stations."""

    max_batch: int
    max_wait_s: float


def measure(judge: Callable[[int], object], clock: Callable[[], float] = time.perf_counter) -> dict[int, float]:
    """Seconds that so many frames take at once: 1, 2, 4 ..., each the quickest of three, after one to warm up.

    Ends at MOST, where a batch takes longer than LONGEST_S, where two doublings have saved nothing, or where `judge` raises
    MemoryError for more than one.
    """
    taken: dict[int, float] = {}
    size = 1
    while size <= MOST:
        runs = []
        for _ in range(REPEATS + 1):
            started_s = clock()
            try:
                judge(size)
            except MemoryError:
                if size == 1:
                    raise
                return taken
            runs.append(clock() - started_s)
            if runs[-1] > LONGEST_S:
                break
        taken[size] = min(runs)
        each = [seconds / frames for frames, seconds in taken.items()]
        if runs[-1] > LONGEST_S or (len(each) > 2 and min(each[-2:]) * NO_GAIN > min(each[:-2])):
            break
        size *= 2
    return taken


def choose(taken: dict[int, float]) -> Batching:
    """From `measure`: the smallest batch within NO_GAIN of the quickest per frame, and a wait that a pair is worth."""
    each = {size: seconds / size for size, seconds in taken.items() if seconds <= LONGEST_S or size == 1}
    quickest = min(each.values())
    max_batch = min(size for size, seconds in each.items() if seconds <= NO_GAIN * quickest)
    saved_s = each[1] - each.get(2, each[1])
    wait_s = HALF * saved_s
    return Batching(max_batch, wait_s if max_batch > 1 and wait_s >= LEAST_WAIT_S else 0.0)
