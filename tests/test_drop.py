"""daemon/drop.py: pictures put into a folder become shots, and nothing else is touched."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.command_parts import Parts
from daemon.drop import SETTLED_S, DropFolders
from daemon.shots import pixel_hash
from tests.broker import wait_for
from tests.parts import draw_part
from tests.plant import TestPlant, picture


@pytest.fixture
def folder(tmp_path: Path, plant: TestPlant) -> Iterator[Path]:
    folder = tmp_path / "drop"
    folder.mkdir()
    drops = DropFolders(plant.commands)
    drops.watch({"disc": folder})
    yield folder
    drops.stop()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def shots(plant: TestPlant) -> list[str]:
    return [row["shot"] for row in plant.run("shots", {"recipe": "disc"})["shots"]]


def test_a_picture_is_taken_and_what_is_none_is_refused_with_a_reason(folder: Path, plant: TestPlant) -> None:
    (folder / "good.png").write_bytes(picture(1))
    (folder / "half.png").write_bytes(picture(2)[:500])
    (folder / "notes.txt").write_text("left alone")
    (folder / ".hidden.png").write_bytes(picture(3))
    (folder / "link.png").symlink_to("/etc/hostname")
    wait_for(lambda: (folder / "taken" / "good.png").is_file(), "the good one to be taken")
    wait_for(lambda: (folder / "refused" / "half.png.txt").is_file(), "the bad one to be refused")
    assert shots(plant) == [pixel_hash(draw_part(1))]
    assert "half.png: damaged or incomplete png" in (folder / "refused" / "half.png.txt").read_text()
    assert (folder / "refused" / "half.png").read_bytes() == picture(2)[:500]
    assert names(folder) == [".hidden.png", "link.png", "notes.txt", "refused", "taken"]


def test_a_file_that_still_grows_is_left_alone_until_it_is_whole(folder: Path, plant: TestPlant) -> None:
    content = picture(1)
    with (folder / "slow.png").open("wb") as file:
        for start in range(0, len(content), len(content) // 8 + 1):
            file.write(content[start : start + len(content) // 8 + 1])
            file.flush()
            assert names(folder) == ["slow.png"]
            time.sleep(SETTLED_S / 4)
    wait_for(lambda: (folder / "taken" / "slow.png").is_file(), "the file to be taken")
    assert shots(plant) == [pixel_hash(draw_part(1))]


def test_the_same_name_again_replaces_nothing(folder: Path, plant: TestPlant) -> None:
    for count, seed in enumerate((1, 2), 1):
        (folder / "part.png").write_bytes(picture(seed))
        wait_for(lambda: not (folder / "part.png").exists(), "the file to be taken")
        assert len(shots(plant)) == count
    assert names(folder / "taken") == ["part-2.png", "part.png"]
    assert (folder / "taken" / "part-2.png").read_bytes() == picture(2)


def test_a_picture_waits_while_commands_are_not_taken(folder: Path, plant: TestPlant) -> None:
    plant.commands.close()
    (folder / "part.png").write_bytes(picture(1))
    wait_for(lambda: plant.counted("register", "busy") > 0, "a try")
    assert names(folder) == ["part.png"]
    plant.commands.open(Parts(plant.teacher, plant.recipes))
    wait_for(lambda: (folder / "taken" / "part.png").is_file(), "the file to be taken")
