"""Long work cut into short steps, so that whoever owns the device may do something else between two."""

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Step = tuple[int, int]
"""(steps done, steps in all) of what is being done."""
Steps = Generator[Step, None, T]
"""Work that stops after each step, and returns its result at the end."""


def finish(steps: Steps[T], progress: Callable[[int, int], None] | None = None) -> T:
    """Do all steps at once. progress: called whenever more is done than before; what it raises ends the work."""
    before = 0
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if progress is not None and step[0] > before:
            progress(*step)
        before = max(before, step[0])
