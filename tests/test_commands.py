"""daemon/commands.py and daemon/payload.py: what is done, and what is refused, one by one."""

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from config.errors import CommandError
from connectors.requests import ANSWERS, MAX_PICTURE_BYTES, REQUESTS, schema_files
from daemon.command_parts import Parts
from daemon.frames import NewestFrames
from daemon.payload import MAX_BYTES, parse_request
from daemon.shots import pixel_hash
from daemon.station import Taught
from tests.broker import wait_for
from tests.frames import frame
from tests.parts import draw_part
from tests.plant import TestPlant, picture

DOCS = Path(__file__).parent.parent / "docs" / "mqtt"


def refusal(plant: TestPlant, name: str, request: dict[str, Any], attachment: bytes | None = None) -> tuple[str, str]:
    with pytest.raises(CommandError) as caught:
        plant.run(name, request, attachment)
    assert plant.counted(name if name in REQUESTS else "unknown", caught.value.code) == 1
    return caught.value.code, str(caught.value)


# what is done


def test_registered_pictures_are_on_disk_listed_and_taught(plant: TestPlant) -> None:
    for seed in (1, 2):
        [shot] = plant.run("register", {"recipe": "disc"}, picture(seed))["shots"]
        assert shot["new"]
        assert shot["held"] is None
        assert shot["shot"] == pixel_hash(draw_part(seed))
    [again] = plant.run("register", {"recipe": "disc"}, picture(2))["shots"]
    assert not again["new"]
    listed = plant.run("shots", {"recipe": "disc"})["shots"]
    assert [row["shot"] for row in listed] == [pixel_hash(draw_part(seed)) for seed in (1, 2)]
    assert all((plant.state / "recipes" / "disc" / "shots" / row["file"]).is_file() for row in listed)

    def two_taught() -> bool:
        taught = plant.taught.get("disc")
        return isinstance(taught, Taught) and taught.calibration.shots == 2

    wait_for(two_taught, "a bank of both")
    assert plant.run("shots", {"recipe": "ring"})["shots"] == []


def test_base64_and_station_do_what_attachment_and_recipe_do(plant: TestPlant) -> None:
    request = {"station": "press", "picture": base64.b64encode(picture(1, suffix=".bmp")).decode()}
    answer = plant.run("register", request)
    assert answer["recipe"] == "disc"
    assert answer["shots"][0]["shot"] == pixel_hash(draw_part(1))


def test_a_shot_is_forgotten_by_the_beginning_of_its_hash(plant: TestPlant) -> None:
    shots = [plant.run("register", {"recipe": "disc"}, picture(seed))["shots"][0]["shot"] for seed in (1, 2)]
    assert plant.run("forget", {"recipe": "disc", "shot": shots[0][:8]})["shot"] == shots[0]
    assert [row["shot"] for row in plant.run("shots", {"recipe": "disc"})["shots"]] == shots[1:]
    code, message = refusal(plant, "forget", {"recipe": "disc", "shot": shots[0][:8]})
    assert code == "refused"
    assert message.startswith("0 shots of recipe 'disc' begin with")


def test_rollback_goes_to_the_bank_before_and_rebuild_back_to_the_shots(plant: TestPlant) -> None:
    for count, seed in enumerate((1, 2), 1):
        plant.run("register", {"recipe": "disc"}, picture(seed))
        wait_for(lambda count=count: len(plant.run("banks", {"recipe": "disc"})["banks"]) == count, "its bank")  # type: ignore[misc]
    newest, oldest = plant.run("banks", {"recipe": "disc"})["banks"]
    assert (newest["current"], newest["shots"], oldest["current"], oldest["shots"]) == (True, 2, False, 1)
    # Each of two is judged by the other and its mirror image: a wide interval, and one shot tells nothing.
    rate = newest["false_reject"]
    assert 0 <= rate["low"] < rate["expected"] < rate["high"] <= 1
    assert oldest["false_reject"] is None
    back = plant.run("rollback", {"recipe": "disc"})["bank"]
    assert (back["bank"], back["current"]) == (oldest["bank"], True)
    taught = plant.taught["disc"]
    assert isinstance(taught, Taught)
    assert taught.calibration.shots == 1
    assert plant.run("rebuild", {"recipe": "disc"})["build"]
    wait_for(lambda: plant.run("banks", {"recipe": "disc"})["banks"][0]["shots"] == 2, "the bank of both")


def test_the_last_frame_and_the_next_ones_become_shots(plant: TestPlant) -> None:
    request = {"station": "press", "last": True}
    assert refusal(plant, "register", request)[1].startswith("station 'press' has had no frame yet")
    plant.frames.see("press", frame(draw_part(1)), 16)
    plant.frames.see("press", frame(None, "incomplete: 3 packets"), 16)
    [last] = plant.run("register", request)["shots"]
    assert last["shot"] == pixel_hash(draw_part(1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(plant.run, "register", {"station": "press", "next": 2})
        for seed in range(2, 200):
            plant.frames.see("press", frame(draw_part(seed)), 16)
            time.sleep(0.05)
            if waiting.done():
                break
        shots = [shot["shot"] for shot in waiting.result(1)["shots"]]
    assert len(set(shots)) == 2
    assert pixel_hash(draw_part(1)) not in shots


def test_next_frames_that_do_not_come_are_told_in_time(plant: TestPlant) -> None:
    plant.frames.see("press", frame(draw_part(1)), 16)
    code, message = refusal(plant, "register", {"station": "press", "next": 3, "timeout_s": 0.1})
    assert (code, message) == ("refused", "station 'press' gave no frame within 0.1 s; 0 of 3 frames are registered")


def test_a_kept_frame_is_not_changed_by_what_the_camera_writes_later() -> None:
    frames = NewestFrames()
    slot = draw_part(1)
    frames.see("press", frame(slot), 16)
    kept = frames.last("press")
    frames.let_go("press")
    slot[:] = 0
    after = frames.last("press")
    assert kept is not None
    assert after is not None
    assert np.array_equal(kept, draw_part(1))
    assert np.array_equal(after, draw_part(1))


def test_the_same_request_id_is_done_once_even_at_once(plant: TestPlant) -> None:
    request = {"station": "press", "next": 1, "request_id": "a"}
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(plant.run, "register", request) for _ in range(3)]
        while not all(one.done() for one in waiting):
            plant.frames.see("press", frame(draw_part(int(time.monotonic() * 100))), 16)
            time.sleep(0.02)
    answers = [one.result() for one in waiting]
    assert answers[0] == answers[1] == answers[2] == plant.run("register", request)
    assert len(plant.run("shots", {"recipe": "disc"})["shots"]) == 1
    assert (plant.counted("register", "ok"), plant.counted("register", "duplicate")) == (1, 3)
    other = plant.run("register", {"recipe": "disc", "request_id": "a"}, picture(5))
    assert other["shots"][0]["new"]


def test_a_command_that_was_refused_may_be_sent_again_with_its_request_id(plant: TestPlant) -> None:
    request = {"station": "press", "last": True, "request_id": "a"}
    refusal(plant, "register", request)
    plant.frames.see("press", frame(draw_part(1)), 16)
    assert plant.run("register", request)["shots"][0]["new"]


# what is refused


@pytest.mark.parametrize(
    ("name", "request_", "code", "words"),
    [
        ("reboot", {}, "unknown_command", "no command is named 'reboot'. Known: banks, forget"),
        ("shots", {"recipe": "cog"}, "unknown_recipe", "no recipe is named 'cog'. Known: disc, ring"),
        ("shots", {"station": "oven"}, "unknown_station", "no station is named 'oven'. Known: press"),
        ("shots", {}, "malformed", "no recipe, expected `recipe`"),
        ("shots", {"recipe": "../etc"}, "malformed", "shots.recipe: string should match"),
        ("shots", {"recipe": 3}, "malformed", "shots.recipe: input should be a valid string, got '3'"),
        ("shots", {"recipe": "disc", "all": True}, "malformed", "shots.all: unknown field. Known: recipe, request_id, station"),
        ("shots", {"recipe": "disc", "request_id": "x" * 129}, "malformed", "shots.request_id: "),
        ("forget", {"recipe": "disc"}, "malformed", "forget.shot: missing"),
        ("register", {"recipe": "disc"}, "malformed", "no source, expected next"),
        ("register", {"recipe": "disc", "last": True}, "malformed", "no station"),
        ("register", {"station": "press", "last": True, "next": 1}, "malformed", "register: several sources"),
        ("register", {"station": "press", "next": 33}, "malformed", "register.next: "),
        ("register", {"recipe": "disc", "picture": "####"}, "malformed", "picture: not base64"),
        ("register", {"recipe": "disc", "picture": "AAAA"}, "refused", "not a picture. Use a whole png"),
        ("register", {"recipe": "disc", "result_id": "x"}, "refused", "not available in this daemon"),
        ("mark", {"result_id": "x", "verdict": "good"}, "refused", "not available in this daemon"),
        ("mark", {"result_id": "x", "verdict": "fine"}, "malformed", "mark.verdict: input should be 'good', 'bad' or 'none'"),
        ("recipe_create", {"recipe": "ring", "object": "cog"}, "refused", "a recipe is named 'ring' already"),
        ("select_recipe", {"recipe": "cog", "station": "press"}, "unknown_recipe", "no recipe is named 'cog'. Known: disc, ring"),
        ("select_recipe", {"recipe": "ring", "station": "oven"}, "unknown_station", "no station is named 'oven'. Known: press"),
        ("threshold_set", {"recipe": "disc", "factor": 1.0, "threshold": 1.0}, "malformed", "both threshold and factor"),
        ("rollback", {"recipe": "disc"}, "refused", "has no earlier bank to go back to"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_reason_and_counted(
    plant: TestPlant, name: str, request_: dict[str, Any], code: str, words: str
) -> None:
    told = refusal(plant, name, request_)
    assert told[0] == code
    assert words in told[1]


def test_a_picture_that_is_too_large_or_out_of_place_is_refused(plant: TestPlant) -> None:
    assert refusal(plant, "register", {"recipe": "disc"}, bytes(MAX_PICTURE_BYTES + 1))[0] == "too_large"
    assert refusal(plant, "shots", {"recipe": "disc"}, b"x") == ("malformed", "shots takes no picture or file")


def test_before_the_start_and_after_the_stop_commands_are_told_to_come_again(plant: TestPlant) -> None:
    plant.commands.close()
    assert refusal(plant, "shots", {"recipe": "disc"}) == ("busy", "the daemon is being stopped. Try again")
    plant.commands.open(Parts(plant.teacher, plant.recipes))
    assert plant.run("shots", {"recipe": "disc"})["shots"] == []


def test_closing_waits_for_the_command_at_hand(plant: TestPlant) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(plant.run, "register", {"station": "press", "next": 1, "timeout_s": 0.5})
        time.sleep(0.1)
        began_s = time.monotonic()
        plant.commands.close()
        assert time.monotonic() - began_s > 0.2
        assert isinstance(waiting.exception(0.1), CommandError)


# payloads


@pytest.mark.parametrize(
    ("payload", "code", "words"),
    [
        (b"\xff\xfe{}", "malformed", "not UTF-8"),
        (b'{"a": "\xff"}', "malformed", "not UTF-8 text (byte 7)"),
        (b"{", "malformed", "not JSON"),
        (b'{"a": "unended', "malformed", "not JSON"),
        (b"[1]", "malformed", "expected a JSON object, got list"),
        (b'{"a": NaN}', "malformed", "NaN is no number"),
        (b'{"a": 1, "a": 2}', "malformed", "a field is there twice"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "malformed", "not JSON"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "malformed", "nested deeper than 8 levels"),
        (b"[" * 60_000, "malformed", "nested deeper than 8 levels"),
        (b'{"a": [' + b"1," * 40_000 + b"1]}", "too_large", "outside of texts"),
        (bytes(MAX_BYTES + 1), "too_large", "at most"),
    ],
)
def test_payloads_that_are_not_a_bounded_json_object_are_refused(payload: bytes, code: str, words: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_request(payload)
    assert caught.value.code == code
    assert words in str(caught.value)


def test_brackets_inside_of_texts_do_not_count_as_nesting() -> None:
    assert parse_request(b'{"a": "[[[[[[[[[[\\"{{{{{{{{{{"}') == {"a": '[[[[[[[[[["{{{{{{{{{{'}
    assert parse_request(b" ") == {}


def test_a_large_picture_in_base64_is_read_in_a_moment() -> None:
    began_s = time.monotonic()
    text = "A" * (20 << 20)
    assert parse_request(json.dumps({"picture": text}).encode())["picture"] == text
    assert time.monotonic() - began_s < 5


# the contract


@pytest.mark.parametrize(("name", "text"), list(schema_files()))
def test_shipped_schemas_of_commands_are_current(name: str, text: str) -> None:
    assert (DOCS / name).read_text() == text, "run `make docs`"


def test_the_shipped_schema_takes_what_is_done_and_refuses_what_is_refused() -> None:
    document = json.loads((DOCS / "commands.schema.json").read_text())
    assert set(document["commands"]) == set(REQUESTS) == set(ANSWERS)

    def valid(name: str, request: dict[str, Any]) -> bool:
        schema = {**document["commands"][name]["request"], "$defs": document["$defs"]}
        return bool(jsonschema.Draft202012Validator(schema).is_valid(request))

    assert valid("register", {"station": "press", "next": 3, "request_id": "7"})
    assert not valid("register", {"station": "press", "next": 0})
    assert not valid("shots", {"recipe": "disc", "all": True})
    assert valid("recipe_create", {"recipe": "a", "object": "b", "region": {"x": 0, "y": 0, "width": 16, "height": 16}})


def test_many_threads_at_once_lose_no_count(plant: TestPlant) -> None:
    threads = [threading.Thread(target=plant.run, args=("shots", {"recipe": "disc"})) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plant.counted("shots", "ok") == 20
