"""Kills a process that teaches, at each step and at random instants, and checks what is left.

    python -m tests.kill_teaching 200

Each victim is a forked process of its own (so that torch is imported once) that goes on with the state folder of the one
before it. It registers, forgets, builds, rolls back and prunes as fast as it can, and says over a pipe what was
acknowledged. After each kill another process starts the teacher as the daemon does and checks: every acknowledged shot has
its row, its file and its pixels; every forgotten one is gone; whoever had a bank still has one that loads.
"""

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from config.errors import StoreError
from connectors.cameras.pictures import read_picture
from daemon.shots import pixel_hash
from daemon.station import Taught
from tests.parts import draw_part
from tests.school import School

STEPS = (
    "picture_stored", "shot_committed", "shot_forgotten", "features_stored", "bank_saved", "bank_committed",
    "swapped", "rows_pruned", "bank_pruned", "held_stored",
)  # fmt: skip
MOST_SHOTS = 12


def victim(folder: Path, say: int, step: str | None, seed: int) -> None:
    """Teach until killed: when `step` is reached, or by the parent."""

    def at(now: str) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(*what: str) -> None:
        os.write(say, (json.dumps(what) + "\n").encode())

    school = School(folder, at=at)
    school.open()
    tell("open")
    chance = random.Random(seed)
    while True:
        known = school.teacher.shots("disc")
        if len(known) > MOST_SHOTS or (len(known) > 4 and chance.random() < 0.2):
            shot = chance.choice(known).shot
            tell("forgetting", shot)
            school.teacher.forget("disc", shot)
            tell("forgot", shot)
        taught = school.builder.taught("disc")
        odd = taught is not None and taught.calibration.shots > 2 and chance.random() < 0.3  # the gate holds it
        number = chance.randrange(10**6)
        noise = np.random.default_rng(number).integers(0, 16, (256, 256))
        checks = 240 * (np.indices((256, 256)) // 8).sum(0) % 480  # edges all over
        part = (checks + noise).astype(np.uint8) if odd else draw_part(number)
        answer = school.teacher.register("disc", cv2.imencode(".png", part)[1].tobytes(), name="part")
        if answer.held is None:
            tell("shot", answer.shot)
        if answer.build is not None and chance.random() < 0.6:
            school.builder.wait(answer.build, 10)
            if school.builder.taught("disc") is not None:
                tell("taught")
        if chance.random() < 0.2 and (banks := school.teacher.banks("disc")):
            with contextlib.suppress(StoreError):  # it may have been pruned since
                school.teacher.rollback("disc", chance.choice(banks).name)


def check(folder: Path, shots: set[str], maybe: set[str], taught: bool) -> None:
    """What the next start of the daemon finds. AssertionError where something is lost."""
    school = School(folder)
    rows = {row.shot: row for row in school.teacher.shots("disc")}
    assert shots - maybe <= set(rows), f"lost shots: {shots - maybe - set(rows)}"
    for shot, row in rows.items():
        assert pixel_hash(read_picture(folder / "recipes" / "disc" / "shots" / row.file)) == shot
    current = school.builder.load_current(school.recipe)
    if taught:
        assert current is not None, "the current bank does not load"
    opened = school.open()
    assert isinstance(opened, Taught) == bool(rows) or taught
    if (build := school.builder.pending("disc")) is not None:
        school.builder.wait(build, 30)
    if rows and taught:
        assert school.builder.taught("disc") is not None
    assert not school.heard("bank_corrupt")
    for bank in school.teacher.banks("disc"):
        assert school.teacher.rollback("disc", bank.name).current
    if rows:
        school.builder.wait(school.teacher.rebuild("disc"), 30)
    school.close()


def in_a_process(run: Callable[[], None]) -> int:
    """Fork; the child's process id."""
    child = os.fork()
    if child:
        return child
    try:
        run()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def kill_one(folder: Path, step: str | None, seed: int, wait_s: float, known: dict[str, bool], taught: bool) -> tuple[bool, bool]:
    """One victim and the check after it. `known`: acknowledged shots, whether they may be gone. (killed at the step, taught)."""
    read, write = os.pipe()
    child = in_a_process(lambda: victim(folder, write, step, seed))
    os.close(write)
    deadline_s = time.monotonic() + (10.0 if step else wait_s)
    os.set_blocking(read, False)
    heard, ended = b"", False
    while not ended and time.monotonic() < deadline_s:
        time.sleep(0.002)
        try:
            heard += os.read(read, 65_536)
        except BlockingIOError:
            continue
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        raise SystemExit("FAILED: the victim ended by itself, see above")
    os.set_blocking(read, True)
    while more := os.read(read, 65_536):
        heard += more
    os.close(read)
    for line in heard.splitlines():
        kind, *what = json.loads(line)
        if kind == "shot":
            known[what[0]] = False
        elif kind == "forgetting" and what[0] in known:
            known[what[0]] = True
        elif kind == "forgot":
            known.pop(what[0], None)
        taught = taught or kind == "taught"
    maybe = {shot for shot, gone in known.items() if gone}
    checker = in_a_process(lambda: check(folder, set(known), maybe, taught))
    if os.waitpid(checker, 0)[1] != 0:
        raise SystemExit(f"FAILED after a kill at {step or f'{wait_s * 1e3:.0f} ms'} (seed {seed})")
    for shot in maybe:  # whichever it was, the next victim may meet it again
        del known[shot]
    return ended, taught


def main() -> None:
    """Kill at each step, then at so many random instants."""
    torch.set_num_threads(1)  # no threads yet, so that forking is safe
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    started_s, chance = time.monotonic(), random.Random(20)
    known: dict[str, bool] = {}
    taught, missed = False, []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "state"
        for number, step in enumerate(STEPS):
            at_step, taught = kill_one(folder, step, number, 0.0, known, taught)
            if not at_step:
                missed.append(step)
        for number in range(count):
            _, taught = kill_one(folder, None, 1_000 + number, chance.uniform(0.01, 0.6), known, taught)
    print(
        f"{len(STEPS) - len(missed)} of {len(STEPS)} steps and {count} random instants killed in "
        f"{time.monotonic() - started_s:.0f} s: {len(known)} acknowledged shots at the end, nothing lost"
    )
    if missed:
        raise SystemExit(f"never reached: {', '.join(missed)}")


if __name__ == "__main__":
    main()
