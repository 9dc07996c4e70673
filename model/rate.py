"""How often something is to be expected, from how often it was seen."""

import math
from collections.abc import Callable
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """How often something is to be expected: `wrong` of `parts` parts, 0..1.

    expected: (wrong + 1/2) / (parts + 1), the mean that Jeffreys' prior gives: none of three is not never. low, high: exact
    95 % interval (Clopper and Pearson, Biometrika 26, 1934).
    """

    wrong: int
    parts: int
    expected: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.expected:.1%} ({self.low:.1%} to {self.high:.1%}; {self.wrong} of {self.parts} parts)"


def rate(wrong: int, parts: int) -> Rate:
    """What `wrong` of `parts` tells of the parts to come. Raises ValueError unless 0 <= wrong <= parts."""
    if not 0 <= wrong <= parts:
        raise ValueError(f"rate: expected 0 <= wrong <= parts, got {wrong} of {parts}")
    tail = (1 - CONFIDENCE) / 2
    # The interval holds every true rate at which what was seen, or something more extreme, is no rarer than `tail`.
    low = 0.0 if wrong == 0 else _crossing(lambda chance: 1 - _at_most(wrong - 1, parts, chance) < tail)
    high = 1.0 if wrong == parts else _crossing(lambda chance: _at_most(wrong, parts, chance) >= tail)
    return Rate(wrong, parts, (wrong + 0.5) / (parts + 1), low, high)


def _at_most(wrong: int, parts: int, chance: float) -> float:
    """The chance that of `parts` parts at most `wrong` are wrong, each with `chance`, 0 < chance < 1."""
    log_right, log_wrong, log_parts = math.log1p(-chance), math.log(chance), math.lgamma(parts + 1)
    return math.fsum(
        math.exp(
            log_parts
            - math.lgamma(number + 1)
            - math.lgamma(parts - number + 1)
            + number * log_wrong
            + (parts - number) * log_right
        )
        for number in range(wrong + 1)
    )


def _crossing(under: Callable[[float], bool]) -> float:
    """Where `under` turns from true to false between 0 and 1, to 1e-12."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if under(middle) else (low, middle)
    return (low + high) / 2
