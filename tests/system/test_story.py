"""The story of a new product: five good parts, a false reject, the yes of a person, and the way back."""

import json
from pathlib import Path
from typing import Any

import cv2

from tests.broker import wait_for
from tests.parts import draw_part, write_parts
from tests.system.daemon import Line, folder_station
from tests.test_cli import aprilcam

TURNS = 14
"""Good parts, each turned by a quarter of a degree more: sooner or later one is rejected."""


def test_a_false_reject_is_promoted_passes_and_fails_again_after_a_rollback(tmp_path: Path, lines: list[Line]) -> None:
    (tmp_path / "parts").mkdir()
    for number in range(TURNS):
        turn = cv2.getRotationMatrix2D((128, 128), number / 4, 1)
        part = cv2.warpAffine(draw_part(30), turn, (256, 256), borderMode=cv2.BORDER_REPLICATE)
        assert cv2.imwrite(str(tmp_path / "parts" / f"{number:02d}.png"), part)
    (tmp_path / "shots").mkdir()
    five = write_parts(tmp_path / "five", range(5))
    line = Line(tmp_path, folder_station("press", tmp_path / "parts"))
    lines.append(line)
    config = line.daemon.config
    config.write_text(config.read_text().replace("rate_hz = 20.0", "rate_hz = 5.0"))
    line.daemon.start()
    assert line.wait_results("press", 1)[0]["reason"] == "not_taught"

    def command(*words: object) -> str:
        done = aprilcam(*words, "--config", config)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def bank(shots: int = 0) -> str:
        """The one that judges, if it has so many shots."""
        rows: list[dict[str, Any]] = json.loads(line.daemon.get("/api/recipes/disc/banks")[1])["banks"]
        return next((row["bank"][:16] for row in rows if row["current"] and shots in (0, row["shots"])), "")

    def judged_by(bank: str) -> dict[int, dict[str, Any]]:
        """The newest result of each picture, once each was judged by that bank."""

        def found() -> dict[int, dict[str, Any]]:
            return {own["frame"]["number"] % TURNS: own for own in line.results("press") if own["bank"] == bank}

        wait_for(lambda: len(found()) == TURNS, "each part to be judged", 60)
        return found()

    command("register", "--recipe", "disc", *five)
    wait_for(lambda: bank(shots=5) != "", "the bank", 60)
    first = bank()
    before = judged_by(first)
    picture, rejected = next(
        (number, own)
        for number, own in before.items()
        if own["verdict"] == "fail" and own["score"] < 1.45 * own["threshold"]  # the gate is at 1.5
    )
    archived = command("results", "--verdict", "fail", "--limit", 500)
    assert rejected["result_id"] in archived

    command("promote", rejected["result_id"])
    wait_for(lambda: bank() != first, "the new bank", 60)
    assert judged_by(bank())[picture]["verdict"] == "pass"
    assert f"{rejected['score']:.4f}" in command("results", "--limit", 500)
    marks = json.loads(line.daemon.get("/api/results?verdict=fail&limit=500")[1])["results"]
    assert [own["result_id"] for own in marks if own["mark"] == "good"] == [rejected["result_id"]]

    command("rollback", "--recipe", "disc")
    seen = len(line.results("press"))
    line.wait_results("press", seen + 2 * TURNS)
    again = [own for own in line.results("press")[seen + 2 :] if own["frame"]["number"] % TURNS == picture]
    assert {(own["bank"], own["verdict"], own["threshold"]) for own in again} == {(first, "fail", rejected["threshold"])}
    sequences = [own["sequence"] for own in line.results("press")]
    assert sequences == list(range(1, len(sequences) + 1))
