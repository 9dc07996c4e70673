"""daemon/changes.py: what differs between two configurations."""

from typing import Any

from config.schema import Config
from daemon.changes import compare


def config(**changes: Any) -> Config:
    document: dict[str, Any] = {
        "cameras": [{"name": f"cam-{name}", "driver": "folder", "path": f"/{name}", "rate_hz": 2.0} for name in "abc"],
        "recipes": [{"name": "disc", "object": "disc"}, {"name": "ring", "object": "ring"}],
        "stations": [{"name": name, "camera": f"cam-{name}", "recipe": "disc"} for name in "abc"],
    }
    return Config.model_validate({**document, **changes}, context={"base": "/"})


def rows(table: str, name: str, **changes: Any) -> dict[str, Any]:
    """A table in which one row is otherwise."""
    own = [row.model_dump(exclude_unset=True, mode="json") for row in getattr(config(), table)]
    return {table: [{**row, **changes} if row["name"] == name else row for row in own]}


def test_nothing_is_otherwise() -> None:
    found = compare(config(), config())
    assert str(found) == "nothing is otherwise"
    assert (found.added, found.changed, found.removed, found.recipes, found.needs_restart) == ((), (), (), (), ())


def test_stations_come_and_go() -> None:
    fewer = config(stations=[{"name": "a", "camera": "cam-a", "recipe": "disc"}])
    assert compare(config(), fewer).removed == ("b", "c")
    assert [own.name for own in compare(fewer, config()).added] == ["b", "c"]


def test_a_setting_of_a_station_leaves_its_camera_alone_and_its_ring_does_not() -> None:
    changes: dict[str, Any]
    for changes in ({"deadline_ms": 80.0}, {"mask": "rle"}, {"overlay": True}, {"recipe": "ring"}, {"part_after_ms": 5.0}):
        found = compare(config(), config(**rows("stations", "b", **changes)))
        assert ([own.name for own in found.changed], found.camera_anew) == (["b"], frozenset())
    for changes in ({"queue_frames": 9}, {"frames": "every"}):
        assert compare(config(), config(**rows("stations", "b", **changes))).camera_anew == {"b"}


def test_a_camera_that_is_otherwise_changes_its_station() -> None:
    found = compare(config(), config(**rows("cameras", "cam-c", rate_hz=3.0)))
    assert [own.name for own in found.changed] == ["c"]
    assert found.camera_anew == {"c"}


def test_cameras_that_change_places_both_start_anew() -> None:
    own = {"a": "cam-b", "b": "cam-a", "c": "cam-c"}
    swapped = config(stations=[{"name": name, "camera": camera, "recipe": "disc"} for name, camera in own.items()])
    assert compare(config(), swapped).camera_anew == {"a", "b"}


def test_recipes() -> None:
    found = compare(config(), config(**rows("recipes", "ring", threshold=0.5)))
    assert [recipe.name for recipe in found.recipes] == ["ring"]
    without = config(recipes=[{"name": "disc", "object": "disc"}])
    assert compare(config(), without).recipes_gone == ("ring",)
    assert [recipe.name for recipe in compare(without, config()).recipes] == ["ring"]


def test_sections_that_need_a_restart_stay_as_they_run() -> None:
    file = config(mqtt={"port": 1884, "keepalive_s": 20}, sparkplug={"group_id": "a", "edge_node_id": "b"}, http={"port": 1})
    found = compare(config(), file)
    assert found.needs_restart == ("mqtt.port", "mqtt.keepalive_s", "sparkplug", "http.port")
    assert found.config == config()
