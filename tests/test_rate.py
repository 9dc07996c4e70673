"""model/rate.py: how often something is to be expected, from how often it was seen."""

import math

import pytest

from model.rate import rate


def test_a_rate_is_jeffreys_with_the_exact_interval() -> None:
    none = rate(0, 10)
    assert none.expected == pytest.approx(0.5 / 11)
    assert [none.low, none.high] == pytest.approx([0, 1 - 0.025 ** (1 / 10)])  # (1 - p)^10 = 0.025
    every = rate(3, 3)
    assert every.expected == pytest.approx(3.5 / 4)
    assert [every.low, every.high] == pytest.approx([0.025 ** (1 / 3), 1])
    # One of two: P(X >= 1) = 1 - (1 - p)^2 = 0.025, and P(X <= 1) = 1 - p^2 = 0.025.
    half = rate(1, 2)
    assert [half.low, half.high] == pytest.approx([1 - math.sqrt(0.975), math.sqrt(0.975)])
    # Clopper and Pearson's table: 5 of 50.
    tabled = rate(5, 50)
    assert [tabled.low, tabled.high] == pytest.approx([0.0333, 0.2181], abs=1e-4)
    assert str(none) == "4.5% (0.0% to 30.8%; 0 of 10 parts)"
    with pytest.raises(ValueError, match="3 of 2"):
        rate(3, 2)
