"""daemon/ring.py: slots are written once, seen uncopied, and free when nobody looks any more."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from daemon.ring import MAX_BYTES, RingReader, RingWriter, slots_for

SHAPE = (5, 7, 3)


def picture(value: int) -> NDArray[np.uint8]:
    return np.full(SHAPE, value, np.uint8)


@pytest.fixture
def ring() -> Iterator[tuple[RingWriter, RingReader]]:
    writer = RingWriter(5 * 7 * 3, slots=3)
    yield writer, RingReader(writer.fd, writer.frame_bytes, writer.slots)
    writer.close()


def put(writer: RingWriter, value: int) -> int:
    slot = writer.write(picture(value))
    assert slot is not None
    return slot


def test_pixels_arrive_as_they_were_written(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    sent = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(SHAPE)[:, ::-1]
    slot = writer.write(sent)
    assert slot is not None
    np.testing.assert_array_equal(reader.view(slot, SHAPE), sent)


def test_a_view_is_read_only(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    view = reader.view(put(writer, 1), SHAPE)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0] = 2


def test_full_ring_says_so_and_overwrites_nothing(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    views = [reader.view(put(writer, value), SHAPE) for value in (1, 2, 3)]
    assert writer.write(picture(4)) is None
    assert [int(view[0, 0, 0]) for view in views] == [1, 2, 3]


def test_slot_is_free_when_its_view_dies(ring: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ring
    views = [reader.view(put(writer, value), SHAPE) for value in (1, 2, 3)]
    del views[1]
    assert writer.write(picture(4)) == 1


@pytest.mark.parametrize("cut", [lambda a: a[1:][:, 2:][..., 0], lambda a: a.reshape(-1)[3:].view(np.int8), memoryview])
def test_views_of_views_hold_the_slot(ring: tuple[RingWriter, RingReader], cut: object) -> None:
    writer, reader = ring
    view = reader.view(put(writer, 9), SHAPE)
    part = cut(view)  # type: ignore[operator]
    del view
    gc.collect()
    assert reader.held == 1
    del part
    assert reader.held == 0


def test_views_outlive_reader_and_writer() -> None:
    writer = RingWriter(5 * 7 * 3, 3)
    reader = RingReader(writer.fd, writer.frame_bytes, writer.slots)
    view = reader.view(put(writer, 77), SHAPE)
    writer.close()
    del reader, writer
    gc.collect()
    assert (view == 77).all()


def test_frame_larger_than_a_slot_is_refused(ring: tuple[RingWriter, RingReader]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ring[0].write(np.zeros((6, 7, 3), np.uint8))


@pytest.mark.parametrize(("slot", "shape"), [(3, SHAPE), (-1, SHAPE), (0, (100, 100)), (0, (0, 7))])
def test_slot_or_shape_outside_the_ring_is_refused(
    ring: tuple[RingWriter, RingReader], slot: int, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="no frame of shape"):
        ring[1].view(slot, shape)


def test_number_of_slots_is_bounded_by_memory() -> None:
    assert slots_for(1280 * 1024, 16) == 16
    assert slots_for(60_000_000, 16) * 60_000_000 <= MAX_BYTES
    assert slots_for(300_000_000, 16) == 3


def test_memory_has_no_name_and_is_not_inherited() -> None:
    writer = RingWriter(100, 3)
    assert not os.get_inheritable(writer.fd)
    assert str(Path(f"/proc/self/fd/{writer.fd}").readlink()).startswith("/memfd:aprilcam-ring")
    writer.close()
