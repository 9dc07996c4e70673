"""daemon/marks.py: marks last, keep their pixels, and refine the threshold by scores of the present bank."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from config.errors import ArchiveError, PictureError
from daemon.marks import Marked, Marks
from model.calibration import Calibration
from tests.archived import Kept, a_result, picture

Pixels = NDArray[np.uint8]


def flat(value: int) -> Pixels:
    """A picture whose score by `Bank(0)` is value / 100."""
    return np.full((32, 32), value, np.uint8)


SHOT = 77


@dataclass
class Bank:
    """Scores a flat picture by its distance to a grey."""

    grey: int
    seen: list[int] = field(default_factory=list)

    def __call__(self, pixels: Pixels) -> float:
        self.seen.append(int(pixels[0, 0]))
        if pixels[0, 0] == SHOT:
            raise PictureError("the picture is a reference shot by now")
        return abs(float(pixels[0, 0]) - self.grey) / 100


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path, pass_share=1.0, max_bytes=1_000_000)
    yield kept
    kept.close()


def test_a_mark_lasts_and_may_be_changed_and_taken_back(kept: Kept) -> None:
    first, second = (kept.put(a_result()).result_id for _ in range(2))
    marks = Marks(kept.ledger, kept.archive)
    marks.mark(first, "good", by="Ann")
    marks.mark(second, "bad", by="Bob")
    marks.mark(first, "bad", by="Cem")
    marks.mark(second, None, by="Bob")
    assert marks.marked("gear") == [Marked(first, "gear", "bad", "Cem")]
    assert Marks(kept.ledger, kept.archive).marked("gear") == marks.marked("gear")
    assert marks.marked("other") == []
    kept_ids = [archived.result_id for archived in kept.archive.latest() if archived.kept]
    assert kept_ids == [first]


def test_only_an_archived_result_can_be_marked(kept: Kept) -> None:
    marks = Marks(kept.ledger, kept.archive)
    with pytest.raises(ArchiveError, match="nothing: not in the archive"):
        marks.mark("nothing", "good", by="Ann")


def test_a_marked_result_outlives_the_quota_until_its_mark_is_taken_back(kept: Kept) -> None:
    noise = [picture(seed, (400, 500)) for seed in range(12)]  # 200 kB each, four fit
    marks = Marks(kept.ledger, kept.archive)
    marked = kept.put(a_result("pass"), noise[0]).result_id
    marks.mark(marked, "bad", by="Ann")
    for pixels in noise[1:6]:
        kept.put(a_result(), pixels)
    assert kept.archive.find(marked) is not None
    assert np.array_equal(kept.archive.pixels(marked), noise[0])
    marks.mark(marked, None, by="Ann")
    kept.put(a_result(), noise[6])
    assert kept.archive.find(marked) is None


def test_marks_are_scored_once_by_each_bank_from_their_pixels(kept: Kept) -> None:
    marks = Marks(kept.ledger, kept.archive)
    for value, mark in ((30, "good"), (40, "good"), (90, "bad")):
        marks.mark(kept.put(a_result(), flat(value)).result_id, "good" if mark == "good" else "bad", by="Ann")
    old, new = Bank(0), Bank(10)
    assert marks.labels("gear", "old", old) == ([0.3, 0.4], [0.9])
    assert marks.labels("gear", "old", old) == ([0.3, 0.4], [0.9])
    assert old.seen == [30, 40, 90]
    marks.mark(kept.put(a_result(), flat(50)).result_id, "good", by="Ann")
    assert marks.labels("gear", "old", old) == ([0.3, 0.4, 0.5], [0.9])
    assert old.seen == [30, 40, 90, 50]
    assert marks.labels("gear", "new", new) == ([0.2, 0.3, 0.4], [0.8])


def test_a_mark_whose_pixels_were_removed_by_hand_is_left_out(kept: Kept) -> None:
    marks = Marks(kept.ledger, kept.archive)
    for value in (30, 40):
        marks.mark(kept.put(a_result(), flat(value)).result_id, "good", by="Ann")
    archived = kept.archive.find(marks.marked("gear")[0].result_id)
    assert archived is not None
    archived.picture.unlink()
    assert marks.labels("gear", "bank", Bank(0)) == ([0.4], [])


def test_a_mark_that_does_not_count_for_a_bank_is_left_out_and_asked_of_once(kept: Kept) -> None:
    marks = Marks(kept.ledger, kept.archive)
    for value in (SHOT, 40):
        marks.mark(kept.put(a_result(), flat(value)).result_id, "good", by="Ann")
    bank = Bank(0)
    for _ in range(2):
        assert marks.labels("gear", "bank", bank) == ([0.4], [])
    assert bank.seen == [SHOT, 40]


def test_marks_refine_a_calibration_and_without_marks_it_stays(kept: Kept) -> None:
    marks = Marks(kept.ledger, kept.archive)
    alone = Calibration(0.5, 0.5, (0.3, 0.4), (0.0, 0.0), True, "2 shots")
    assert marks.refine("gear", alone, "bank", Bank(0)) is None
    marks.mark(kept.put(a_result("pass"), flat(46)).result_id, "bad", by="Ann")
    labelled = marks.refine("gear", alone, "bank", Bank(0))
    assert labelled is not None
    assert labelled.threshold == pytest.approx(0.43)  # the middle of 0.40, the highest shot, and 0.46
    assert (labelled.good, labelled.bad) == (0, 1)
