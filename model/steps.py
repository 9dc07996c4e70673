"""Long work cut into short steps, so that whoever owns the device may do something else between two."""

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Step = tuple[int, int]
"""(steps done, steps in all) of what is being done."""
Steps = Generator[Step, None, T]
"""Work that stops after each step, and returns its result at the end."""


def telling(steps: Steps[T], progress: Callable[[int, int], None]) -> Steps[T]:
    """The same steps; `progress` is called at each of them, and what it raises ends the work."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        progress(*step)
        yield step


def finish(steps: Steps[T], progress: Callable[[int, int], None] | None = None) -> T:
    """Do all steps at once. progress: called whenever more is done than before; what it raises ends the work."""
    before = 0

    def told(done: int, total: int) -> None:
        nonlocal before
        if progress is not None and done > before:
            progress(done, total)
        before = max(before, done)

    work = telling(steps, told)
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
