"""daemon/batching.py: batches are as large as they pay, and waits no longer than they are worth."""

import pytest

from daemon.batching import Batching, choose, measure


class Machine:
    """Takes `fixed` seconds for a batch and `each` for every frame; its clock stands still otherwise."""

    def __init__(self, fixed: float, each: float) -> None:
        self.fixed, self.each = fixed, each
        self.now_s = 0.0
        self.sizes: list[int] = []

    def judge(self, size: int) -> None:
        self.sizes.append(size)
        self.now_s += self.fixed + size * self.each

    def measure(self) -> dict[int, float]:
        return measure(self.judge, lambda: self.now_s)


def test_where_a_batch_saves_nothing_frames_are_judged_alone_and_nobody_waits() -> None:
    machine = Machine(0.0, 0.012)
    taken = machine.measure()
    assert list(taken) == [1, 2, 4]  # two doublings were enough to know
    assert choose(taken) == Batching(1, 0.0)


def test_where_it_saves_much_batches_grow_until_that_ends() -> None:
    machine = Machine(0.020, 0.001)
    taken = machine.measure()
    assert taken[8] == pytest.approx(0.028)
    chosen = choose(taken)
    assert chosen.max_batch == 64  # 1.31 ms a frame; 32 takes 1.63
    assert chosen.max_wait_s == pytest.approx((0.021 - 0.011) / 2)


def test_the_smallest_of_equals_is_taken() -> None:
    chosen = choose({1: 0.010, 2: 0.012, 4: 0.0205, 8: 0.040, 16: 0.080})
    assert chosen.max_batch == 4
    assert chosen.max_wait_s == pytest.approx(0.002)


def test_a_slow_model_is_run_once_only_and_batches_past_the_limit_are_not_taken() -> None:
    slow = Machine(0.0, 9.0)
    assert choose(slow.measure()) == Batching(1, 0.0)
    assert slow.sizes == [1]
    steady = Machine(0.2, 0.1)
    taken = steady.measure()
    assert list(taken) == [1, 2, 4]
    assert choose(taken).max_batch == 2


def test_the_first_run_warms_up_and_does_not_count() -> None:
    times = iter([0.0, 0.4, 0.4, 0.41, 0.41, 0.42, 0.42, 0.43] + [1.0 + number for number in range(100)])
    assert measure(lambda _: None, lambda: next(times))[1] == pytest.approx(0.01)


def test_a_batch_that_the_device_has_no_memory_for_ends_the_measuring() -> None:
    def judge(size: int) -> None:
        if size > 4:
            raise MemoryError

    assert list(measure(judge, iter(number / 100 for number in range(1_000)).__next__)) == [1, 2, 4]
    with pytest.raises(MemoryError):
        measure(lambda _: (_ for _ in ()).throw(MemoryError()))
