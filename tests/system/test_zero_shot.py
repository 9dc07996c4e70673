"""Whole-daemon story: a CLIP preset judges by words alone, and by words and shots once there are some.

Expected scores are made of what the authors' own code gives (tests/data/april_gan_tiny.npz).
"""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.parts import write_parts
from tests.system.daemon import Line, folder_station
from tests.tiny_clip import DATA, clip_state, linear_state, tiny_spec, write_preset

TOP = '[inference]\npreset = "tiny.toml"'


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    write_preset(tiny_spec(tmp_path, clip_state(), linear_state()), tmp_path / "tiny.toml")
    (tmp_path / "parts").mkdir()
    with np.load(DATA / "april_gan_tiny.npz", allow_pickle=False) as golden:
        for number in range(3):
            cv2.imwrite(str(tmp_path / "parts" / f"{number}.png"), golden[f"test{number}/image"][:, :, ::-1])
    (tmp_path / "shots").mkdir()
    line = Line(tmp_path, folder_station("press", tmp_path / "parts", "loop = false"), top=TOP)
    text = line.daemon.config.read_text()
    line.daemon.config.write_text(text.replace('object = "disc"', 'object = "metal nut"'))
    yield line
    line.close()


def test_words_judge_without_shots_and_both_halves_with_them(tmp_path: Path, line: Line) -> None:
    line.daemon.start()
    results = line.wait_results("press", 3, 120.0)
    with np.load(DATA / "april_gan_tiny.npz", allow_pickle=False) as golden:
        for number, result in enumerate(results):
            peak = golden[f"test{number}/metal nut/zero_shot_map"].max()
            chance = float(golden[f"test{number}/metal nut/image_probability"])
            # Four layers are tapped: even odds.
            assert result["score"] == pytest.approx(peak + 4 * chance, abs=1e-3)
            assert result["threshold"] == 4.0
            assert result["verdict"] == ("fail" if peak + 4 * chance > 4 else "pass")
            assert result["bank"] is None
    state = line.retained("press/state", "state")
    assert state is not None
    assert (state["mode"], state["bank"]) == ("zero_shot", None)
    assert "words alone" in line.daemon.said()
    assert "no shots: the threshold is what words say at even odds" in line.daemon.said()
    line.daemon.end()

    write_parts(tmp_path / "shots", range(4))
    line.daemon.start()
    taught = line.wait_results("press", 6, 120.0)[3:]
    state = line.retained("press/state", "state")
    assert state is not None
    assert state["mode"] == "both"
    assert all(result["bank"] == state["bank"] is not None for result in taught)
    assert all(after["score"] > before["score"] for before, after in zip(results, taught, strict=True))
    [kept] = [path for path in (tmp_path / "state" / "cache").iterdir() if not path.name.startswith("encoder-")]
    assert kept.stat().st_size > 100
