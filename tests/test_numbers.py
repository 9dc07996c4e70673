"""connectors/cameras/numbers.py: frame numbers over the wrap of the wire's own."""

import pytest

from connectors.cameras.numbers import BlockCounter


@pytest.mark.parametrize(
    ("block_ids", "numbers"),
    [
        ([1, 2, 4], [1, 2, 4]),
        ([65_534, 65_535, 1, 2], [65_534, 65_535, 65_536, 65_537]),
        ([65_530, 3], [65_530, 65_538]),  # lost over the wrap
        ([65_535, 1, 65_535, 1], [65_535, 65_536, 131_070, 131_071]),
        ([65_535, 65_536, 70_000, 1 << 40], [65_535, 65_536, 70_000, 1 << 40]),  # 64-bit ids never wrap
        ([0, 1], [0, 1]),
    ],
)
def test_block_ids_are_unwrapped(block_ids: list[int], numbers: list[int]) -> None:
    counter = BlockCounter()
    assert [counter.number(block_id) for block_id in block_ids] == numbers


def test_frames_without_an_id_count_on() -> None:
    counter = BlockCounter()
    assert [counter.next_number(), counter.number(1), counter.number(65_535), counter.next_number()] == [
        0,
        1,
        65_535,
        65_536,
    ]
    assert [counter.number(2), counter.next_number(), counter.next_number()] == [65_537, 65_538, 65_539]
