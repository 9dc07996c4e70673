"""The short version of `make soak`: half a minute of faults, and the same proof."""

from tests.soak import soak


def test_half_a_minute_of_faults_loses_nothing() -> None:
    told = soak(0.5, 7)
    assert "answered once" in told
