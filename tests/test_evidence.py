"""daemon/evidence.py: commands over the real archive, marks and teacher."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from config.errors import CommandError
from daemon.command_parts import Parts
from daemon.evidence import Evidence
from daemon.marks import Marks
from daemon.shots import pixel_hash
from tests.archived import Kept, a_result
from tests.parts import draw_part
from tests.plant import TestPlant, picture

UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
def kept(tmp_path: Path, plant: TestPlant) -> Iterator[Kept]:
    kept = Kept(tmp_path / "kept")
    plant.commands.open(Parts(plant.teacher, plant.recipes, Evidence(kept.archive, Marks(kept.ledger, kept.archive))))
    yield kept
    kept.close()


def code_of(plant: TestPlant, name: str, **request: object) -> str:
    with pytest.raises(CommandError) as caught:
        plant.run(name, request)
    return caught.value.code


def test_an_archived_result_is_promoted_to_a_shot_of_its_recipe_and_marked_good(plant: TestPlant, kept: Kept) -> None:
    result_id = kept.put(a_result("fail", recipe="disc"), draw_part(3)).result_id
    answer = plant.run("promote", {"result_id": result_id})
    assert answer["recipe"] == "disc"
    assert [shot["shot"] for shot in answer["shots"]] == [pixel_hash(draw_part(3))]
    assert [row["shot"] for row in plant.run("shots", {"recipe": "disc"})["shots"]] == [pixel_hash(draw_part(3))]
    assert [own.mark for own in Marks(kept.ledger, kept.archive).marked("disc")] == ["good"]


def test_what_is_marked_bad_becomes_no_shot_until_it_is_marked_good(plant: TestPlant, kept: Kept) -> None:
    result_id = kept.put(a_result("fail", recipe="disc"), draw_part(4)).result_id
    plant.run("mark", {"result_id": result_id, "verdict": "bad"})
    assert code_of(plant, "promote", result_id=result_id) == "refused"
    assert code_of(plant, "register", recipe="disc", result_id=result_id, force=True) == "refused"
    assert plant.run("shots", {"recipe": "disc"})["shots"] == []
    plant.run("mark", {"result_id": result_id, "verdict": "good"})
    assert plant.run("promote", {"result_id": result_id})["shots"][0]["new"]


def test_results_are_asked_for_by_recipe_time_and_page(plant: TestPlant, kept: Kept) -> None:
    day = (datetime.now(UTC) - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    made = [kept.put(a_result(recipe="disc", at=day + timedelta(hours=6, seconds=s))).result_id for s in range(3)]
    kept.put(a_result(recipe="ring"))

    def ids(**request: object) -> list[str]:
        return [row["result_id"] for row in plant.run("results", request)["results"]]

    assert ids(recipe="disc", until=f"{day:%Y-%m-%d}T08:00:02+02:00") == [made[1], made[0]]
    assert ids(recipe="disc", since=f"{day:%Y-%m-%d}T06:00:01.5Z") == [made[2]]
    assert ids(recipe="disc", before=made[1]) == [made[0]]
    assert code_of(plant, "results", before=UNKNOWN) == "unknown_result"
    for wrong in ("2026-05-04T06:00:00", "2026-05-04", "yesterday", "2026-02-30T06:00:00Z", 1777000000):
        with pytest.raises(CommandError, match=r"results\.since: .*expected RFC 3339 with its zone") as caught:
            plant.run("results", {"since": wrong})
        assert caught.value.code == "malformed"


def test_results_that_are_not_archived_are_told(plant: TestPlant, kept: Kept) -> None:
    for name, more in (("mark", {"verdict": "good"}), ("promote", {})):
        assert code_of(plant, name, result_id=UNKNOWN, **more) == "unknown_result"
    result = kept.put(a_result("fail", recipe="disc"), np.zeros((20, 20), np.uint8))
    archived = kept.archive.find(result.result_id)
    assert archived is not None
    archived.picture.unlink()
    assert code_of(plant, "promote", result_id=result.result_id) == "unknown_result"


def test_a_mark_answers_with_the_build_that_follows_it_and_banks_tell_what_came_of_it(plant: TestPlant, kept: Kept) -> None:
    plant.refine = Marks(kept.ledger, kept.archive).refine
    for seed in range(4):
        build = plant.run("register", {"recipe": "disc"}, picture(seed))["shots"][0]["build"]
    plant.built(build)
    alone = plant.run("banks", {"recipe": "disc"})["banks"][0]
    assert alone["marks"] is None
    result_id = kept.put(a_result("fail", recipe="disc"), draw_part(9, scratched=True)).result_id
    plant.built(plant.run("mark", {"result_id": result_id, "verdict": "bad"})["build"])
    told = plant.run("banks", {"recipe": "disc"})["banks"][0]
    assert told["bank"] == alone["bank"]
    assert "1 marked bad" in told["advice"]
    assert told["marks"] == {
        "good": 0,
        "bad": 1,
        "shots_threshold": alone["threshold"],
        "false_reject": None,
        "escape": {"expected": pytest.approx(1 / 4), "low": 0.0, "high": pytest.approx(0.975)},  # none of one
        "rejected": 0,
        "escaped": 0,
    }
    plant.built(plant.run("mark", {"result_id": result_id, "verdict": "none"})["build"])
    assert plant.run("banks", {"recipe": "disc"})["banks"][0] == alone
    foreign = kept.put(a_result("fail", recipe="gone"), draw_part(9)).result_id
    assert plant.run("mark", {"result_id": foreign, "verdict": "bad"})["build"] is None
