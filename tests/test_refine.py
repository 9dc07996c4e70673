"""Marked parts move the threshold: daemon/builder.py, maker.py, marks.py and banks.py together."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from config.schema import RecipeConfig, Region
from daemon.marks import Mark
from daemon.station import Taught
from tests.archived import a_result
from tests.parts import draw_part, png
from tests.school import RECIPE, School

Make = Callable[..., School]
Pixels = NDArray[np.uint8]


@pytest.fixture
def school(tmp_path: Path) -> Iterator[Make]:
    schools: list[School] = []

    def make(recipe: RecipeConfig = RECIPE) -> School:
        schools.append(School(tmp_path / "state", recipe))
        return schools[-1]

    yield make
    for one in schools:
        if one.ledger._thread.is_alive():
            one.close()


def teach(school: School, pictures: list[Pixels]) -> Taught:
    school.open()
    for pixels in pictures:
        build = school.teacher.register("disc", png(pixels), name="part").build
    return school.built(build)


def score(school: School, taught: Taught, pixels: Pixels) -> float:
    region = school.recipe.region
    part = pixels[region.y : region.y + region.height, region.x : region.x + region.width] if region else pixels
    return float(school.builder.judge(part, taught.reference).scores[0])


def spotted(level: int, seed: int = 50) -> Pixels:
    """A good part with a chequered spot: the more contrast, the higher it scores."""
    spot = draw_part(seed).astype(np.float32)
    spot[104:152, 104:152] += level * (np.indices((48, 48)).sum(0) // 4 % 2 - 0.5)
    return np.clip(spot, 0, 255).astype(np.uint8)


def highest(taught: Taught) -> float:
    """Score of the shots that pass; of bad parts over it, and not over the threshold, only a mark can tell."""
    return max(own for own in taught.calibration.shot_scores if own <= taught.calibration.threshold)


def part_that_scores(school: School, taught: Taught, low: float, high: float) -> Pixels:
    """Between both, by `taught`."""
    for seed in range(50, 60):
        for level in range(0, 200, 2):
            spot = spotted(level, seed)
            if (scored := score(school, taught, spot)) >= high:
                break  # it only rises
            if low < scored:
                return spot
    raise AssertionError(f"no spot scores between {low} and {high}")


def marked(school: School, pixels: Pixels, mark: Mark) -> str:
    """Archived, marked, and the marks followed: its result_id."""
    result_id = school.kept.put(a_result(recipe="disc"), pixels).result_id
    school.marks.mark(result_id, mark, by="Ann")
    school.built(school.teacher.refine("disc"))
    return result_id


def parts(count: int, seed: int = 0) -> list[Pixels]:
    return [draw_part(number) for number in range(seed, seed + count)]


def test_a_part_marked_bad_that_passed_fails_from_then_on_and_passes_when_the_mark_is_taken_back(school: Make) -> None:
    own = school()
    alone = teach(own, parts(8))
    limit = alone.calibration.threshold
    escaped = part_that_scores(own, alone, highest(alone), limit)
    result_id = marked(own, escaped, "bad")
    judges = own.builder.taught("disc")
    assert judges is not None
    assert judges.calibration.threshold < score(own, judges, escaped) < limit
    moved = judges.calibration.threshold / limit
    assert judges.calibration.pixel_threshold == pytest.approx(alone.calibration.pixel_threshold * moved)
    assert judges.bank is not None
    assert alone.bank is not None
    assert judges.bank.hash == alone.bank.hash
    [told] = own.heard("threshold_refined")
    assert told["threshold"] == judges.calibration.threshold
    assert "1 marked bad" in str(told["advice"])
    assert len(own.heard("build_started")) == len(own.heard("bank_built"))
    [row] = own.teacher.banks("disc")[:1]
    assert row.calibration == judges.calibration
    assert row.labelled is not None
    assert row.labelled.escape is not None
    own.marks.mark(result_id, None, by="Ann")
    assert own.built(own.teacher.refine("disc")).calibration == alone.calibration


def test_a_false_reject_marked_good_passes_from_then_on(school: Make) -> None:
    own = school()
    alone = teach(own, parts(8))
    rejected = part_that_scores(own, alone, alone.calibration.threshold, 1.1 * alone.calibration.threshold)
    marked(own, rejected, "good")
    judges = own.builder.taught("disc")
    assert judges is not None
    assert score(own, judges, rejected) <= judges.calibration.threshold


def test_marks_are_followed_by_the_next_bank_too(school: Make) -> None:
    own = school()
    alone = teach(own, parts(8))
    marked(own, part_that_scores(own, alone, highest(alone), alone.calibration.threshold), "bad")
    taught = own.built(own.teacher.register("disc", png(draw_part(8)), name="ninth").build)
    assert "1 marked bad" in taught.calibration.advice
    [row] = [row for row in own.teacher.banks("disc") if row.current]
    assert row.labelled is not None
    assert row.labelled.shots_threshold != alone.calibration.threshold


def test_a_promoted_part_does_not_count_for_the_bank_that_knows_it(school: Make) -> None:
    own = school()
    alone = teach(own, parts(8))
    rejected = part_that_scores(own, alone, alone.calibration.threshold, 1.1 * alone.calibration.threshold)
    own.marks.mark(own.kept.put(a_result(recipe="disc"), rejected).result_id, "good", by="promote")
    taught = own.built(own.teacher.register("disc", png(rejected), name="promoted").build)
    assert taught.calibration.shots == 9
    assert "marked" not in taught.calibration.advice
    assert score(own, taught, rejected) <= taught.calibration.threshold


def test_rolled_back_it_judges_as_it_did_and_so_after_a_restart(school: Make) -> None:
    own = school()
    alone = teach(own, parts(8))
    rejected = part_that_scores(own, alone, alone.calibration.threshold, 1.1 * alone.calibration.threshold)
    own.built(own.teacher.register("disc", png(rejected), name="promoted").build)
    marked(own, rejected, "good")  # a shot of the present bank, but none of the one before
    own.teacher.rollback("disc")
    for _ in range(2):
        judges = own.builder.taught("disc")
        assert judges is not None
        assert judges.calibration == alone.calibration
        assert score(own, judges, rejected) > judges.calibration.threshold
        own.close()
        own = school()
        own.open()
        assert own.builder.pending("disc") is None


def test_a_mark_that_came_just_before_a_stop_is_followed_after_the_start(school: Make) -> None:
    own = school()
    alone = teach(own, parts(8))
    escaped = part_that_scores(own, alone, highest(alone), alone.calibration.threshold)
    own.marks.mark(own.kept.put(a_result(recipe="disc"), escaped).result_id, "bad", by="Ann")
    own.close()
    again = school()
    opened = again.open()
    assert isinstance(opened, Taught)
    assert opened.calibration == alone.calibration  # the start does not wait for it
    judges = again.built(again.builder.pending("disc"))
    assert score(again, judges, escaped) > judges.calibration.threshold
    again.close()
    third = school()
    last = third.open()
    assert isinstance(last, Taught)
    assert last.calibration == judges.calibration


def test_marks_are_scored_in_the_recipes_region(school: Make) -> None:
    own = school(RecipeConfig(name="disc", object="disc", region=Region(x=100, y=100, width=64, height=64)))
    alone = teach(own, parts(8))
    escaped = part_that_scores(own, alone, highest(alone), alone.calibration.threshold)
    marked(own, escaped, "bad")
    judges = own.builder.taught("disc")
    assert judges is not None
    assert judges.calibration.threshold < score(own, judges, escaped)
    too_small = own.kept.put(a_result(recipe="disc"), draw_part(1)[:80, :80]).result_id
    own.marks.mark(too_small, "bad", by="Ann")
    assert own.built(own.teacher.refine("disc")).calibration == judges.calibration


def test_a_mark_joins_the_build_that_waits(school: Make) -> None:
    own = school()
    teach(own, parts(3))
    own.builder.stop()
    waiting = own.builder.refine("disc")
    assert own.builder.request("disc") == waiting == own.builder.refine("disc")
