"""What whole-daemon stories share."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.system.daemon import Line


@pytest.fixture
def lines() -> Iterator[list[Line]]:
    """Put daemons in; they are ended after the test."""
    lines: list[Line] = []
    with ExitStack() as stack:
        yield lines
        for line in lines:
            stack.callback(line.close)
