"""The builder: makes the bank that belongs to a recipe's shots, in the background, while the old one keeps judging.

A build: the maker's steps, then the swap, then what is too old goes. A process killed between any two of these starts again
with a bank that loads and every shot.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from config.errors import AprilcamError, CommandError, StoppingError, StoreError
from config.schema import RecipeConfig
from connectors.contract import EventKind
from daemon.banks import BankRow, Banks
from daemon.finisher import uuid7
from daemon.maker import PARTS, Maker, Progress, Refine
from daemon.shots import At, Pixels, Shots, nowhere
from daemon.station import Taught, Untaught
from model.detector import Detector, Judgement, Reference
from model.errors import ModelError
from model.steps import Steps, telling

log = logging.getLogger(__name__)
T = TypeVar("T")

Detail = dict[str, str | int | float | bool | None]
OnEvent = Callable[[str, EventKind, Detail], None]
"""(recipe, kind, detail)."""

TELL_S = 1.0
"""Least time between two events of progress."""
NICE = 10
"""Of the builder's thread, which reads and writes files while frames are judged."""


class Device(Protocol):
    """What owns the device: `daemon.inspector.Inspector` is one."""

    def submit_background(self, work: Steps[T]) -> "Future[T]":
        """Run in slices; the future is cancelled at a stop."""


@dataclass
class _Build:
    """One build; `marks_only`: the shots are not looked at. `given_up` says why it is to end without a bank."""

    recipe: str
    id: str
    marks_only: bool
    given_up: str | None = None


class _GivenUp(Exception):
    """The build is no longer wanted."""


class Builder:
    """Owner of the builder's thread and of what each recipe is judged by. Its methods may be called from any thread."""

    def __init__(
        self,
        store: Path,
        shots: Shots,
        banks: Banks,
        detector: Detector,
        device: Device,
        *,
        recipe_of: Callable[[str], RecipeConfig],
        on_taught: Callable[[RecipeConfig, Taught | Untaught], None],
        on_event: OnEvent = lambda *_: None,
        refine: Refine = lambda *_: None,
        in_use: Callable[[], Collection[str]] | None = None,
        bank_rows: int | None = None,
        at: At = nowhere,
    ) -> None:
        """on_taught: the swap, by one assignment. refine: what marks make of a calibration; without it there are no marks.

        in_use: recipes whose banks stay in memory, beside the one that was loaded or built last; None: all. bank_rows: most
        rows of a layer of the banks; None: as the preset says.
        """
        self._shots = shots
        self._banks = banks
        self._detector = detector
        self._device = device
        self._recipe_of = recipe_of
        self._on_taught = on_taught
        self._on_event = on_event
        self._in_use = in_use
        self._at = at
        self._maker = Maker(store, shots, banks, detector, self._do, bank_rows, refine, at)
        self._wake = threading.Condition()
        self._pending: dict[str, _Build] = {}
        self._running: _Build | None = None
        self._stopping = False
        self._swap = threading.Lock()
        """Held from the commit that makes a bank current over its swap to the end of pruning."""
        self._taught: dict[str, Taught | Untaught] = {}
        self._thread = threading.Thread(target=self._run, name="builder", daemon=True)

    def start(self) -> None:
        """Begin to build what is asked for."""
        self._thread.start()

    def stop(self) -> None:
        """End at the next step; the shots of an unfinished build are built at the next start."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def request(self, recipe: str) -> str:
        """Build from the shots as they are when it begins; a build that waits already will do. Its id."""
        return self._ask(recipe, marks_only=False)

    def refine(self, recipe: str) -> str:
        """Let the recipe's marks, as they are then, move the threshold of the bank that judges; other banks stay. Its id."""
        return self._ask(recipe, marks_only=True)

    def _ask(self, recipe: str, *, marks_only: bool) -> str:
        with self._wake:
            build = self._pending.setdefault(recipe, _Build(recipe, uuid7(time.time_ns()), marks_only))
            build.marks_only &= marks_only
            self._wake.notify_all()
            return build.id

    def pending(self, recipe: str, *, of_shots: bool = False) -> str | None:
        """The id of the build that waits or runs, None when there is none. of_shots: not one that follows marks alone."""
        with self._wake:
            builds = [build for build in (self._pending.get(recipe), self._running_of(recipe)) if build is not None]
            return next((build.id for build in builds if not (of_shots and build.marks_only)), None)

    def wait(self, build: str, timeout_s: float) -> bool:
        """Wait until a build has ended, in whatever way. Whether it has."""

        def ended() -> bool:
            running = self._running is not None and self._running.id == build
            return not running and all(own.id != build for own in self._pending.values())

        with self._wake:
            return self._wake.wait_for(ended, timeout_s)

    def taught(self, recipe: str) -> Taught | None:
        """What judges the recipe now, where that is in memory."""
        taught = self.judging(recipe)
        return taught if isinstance(taught, Taught) else None

    def judging(self, recipe: str) -> Taught | Untaught | None:
        """The same, or why nothing judges; None where that is not in memory."""
        return self._taught.get(recipe)

    def judge(self, pixels: Pixels, reference: Reference) -> Judgement:
        """What a reference says of one picture (cropped). Raises StoppingError."""
        return self._maker.judge(pixels, reference)

    def rollback(self, recipe: str, bank: str | None = None) -> BankRow:
        """Judge by an earlier bank (its name or hash; None: the newest built before the current one), also after a restart.

        Builds of the recipe that wait or run are given up. The shots stay; the next build starts from all of them.
        Raises StoreError when there is no such bank or it cannot be read any more, CommandError for one of another region:
        the region that was set stays.
        """
        with self._swap:  # what is chosen must not be pruned meanwhile
            config = self._recipe_of(recipe)
            rows = self._banks.all(recipe)
            now = next((number for number, row in enumerate(rows) if row.current), -1)
            wanted = rows[now + 1 :][:1] if bank is None else [row for row in rows if bank in (row.bank, row.name)]
            if not wanted:
                known = ", ".join(row.name for row in rows) or "none"
                which = "an earlier bank" if bank is None else f"bank {bank}"
                raise StoreError(f"recipe {recipe}: {which} is not kept. Kept: {known}.")
            [row] = wanted
            found = self._maker.load(config, row.bank)
            if found is None:
                if (region := self._maker.other_region(config, row.bank)) is not None:
                    reason = f"recipe {recipe!r}: bank {row.name} is of another region of interest ({region})"
                    raise CommandError("refused", f"{reason}. Set that region, and the bank judges again")
                raise StoreError(f"recipe {recipe}: bank {row.name} does not fit the present model and recipe, or is damaged.")
            self._give_up(recipe, f"rolled back to bank {row.name}")
            self._banks.make_current(recipe, row.bank, rolled_back=True)
            self._tell(config, found)
        return replace(row, current=True, rolled_back=True)

    def retire(self, recipe: str, timeout_s: float) -> bool:
        """Give up the recipe's builds, and forget what judges it: it is about to go, and `recipe_of` refuses it already.

        Whether its running build has ended in time.
        """
        running = self._give_up(recipe, "the recipe is being deleted")
        if running is not None and not self.wait(running, timeout_s):
            return False
        with self._swap:  # so has a rollback
            self._taught.pop(recipe, None)
        return True

    def _running_of(self, recipe: str) -> _Build | None:
        """Under `_wake`."""
        return self._running if self._running is not None and self._running.recipe == recipe else None

    def _give_up(self, recipe: str, why: str) -> str | None:
        """The id of the build that runs, and ends at its next step."""
        with self._wake:
            running = self._running_of(recipe)
            for build in (self._pending.pop(recipe, None), running):
                if build is not None:
                    build.given_up = why
            self._wake.notify_all()
            return running.id if running is not None else None

    # What judges, without a build.

    def load_current(self, recipe: RecipeConfig) -> Taught | None:
        """Judge by the bank that was made current last, when it fits the present model and recipe.

        By its own region: that of the recipe may be another one, whose bank is still to be built.
        """
        with self._swap:  # what is loaded must not be older than what judges
            return self._load_current(recipe, any_region=True)

    def _load_current(self, recipe: RecipeConfig, *, any_region: bool) -> Taught | None:
        current = self._banks.current(recipe.name)
        taught = self._maker.load(recipe, current[0], any_region=any_region) if current is not None else None
        if taught is not None:
            self._tell(recipe, taught)
        return taught

    def prepare(self, recipe: RecipeConfig) -> Taught | Untaught | None:
        """Have in memory what judges a recipe: its bank, its words, or why nothing does. None: its shots need a build first.

        Raises ModelError when the model does not know the recipe's mode, StoppingError.
        """
        with self._swap:
            ready: Taught | Untaught | None = self.taught(recipe.name) or self._load_current(recipe, any_region=True)
            if ready is None and not self._shots.all(recipe.name):
                ready = self._maker.make(recipe, lambda *_: None, lambda: None)
                self._tell(recipe, ready)
        self.catch_up(recipe)
        return ready

    def resume(self, recipe: RecipeConfig) -> None:
        """At the start: `catch_up`, or look at the marks, as one may have come just before the stop.

        A current bank that does not fit the model any more, or is damaged, is built again.
        """
        self.catch_up(recipe)
        current = self._banks.current(recipe.name)
        if current is None:
            return
        if self.judging(recipe.name) is None and self._maker.load(recipe, current[0]) is None:
            self.request(recipe.name)
        elif not current[1]:
            self.refine(recipe.name)

    def catch_up(self, recipe: RecipeConfig) -> None:
        """Ask for a build where the current bank is not of the present shots and region; after a rollback, whose bank was of the
        region then, where the region is another one or when somebody asks."""
        current, shots = self._banks.current(recipe.name), self._shots.all(recipe.name)
        if current is None:
            behind = bool(shots)
        else:
            own = self._maker.manifest(recipe, [shot.shot for shot in shots]).hash if shots else ""
            taught = self.taught(recipe.name)
            elsewhere = taught is not None and taught.region != recipe.region
            behind = elsewhere or (not current[1] and own != current[0])
        if behind and self.pending(recipe.name) is None:
            self.request(recipe.name)

    def drop_unused(self) -> None:
        """Let go of banks of recipes that are not in use."""
        with self._swap:
            self._drop_unused()

    def _drop_unused(self, spare: str | None = None) -> None:
        if self._in_use is not None:
            kept = {*self._in_use(), spare}
            for recipe in [recipe for recipe in self._taught if recipe not in kept]:
                del self._taught[recipe]

    def teach(self, recipe: RecipeConfig, progress: Progress) -> Taught | Untaught:
        """What judges the recipe at the start: the current bank, else one that is built now.

        A current bank that is not of the present shots or region judges, by its own region, until the build that this asks for
        is done; after a rollback, one that is not of the present shots until somebody asks.
        Raises PictureError when no shot can be used, ModelError when they make no bank or the model does not know the
        recipe's mode, StoreError when the disk refuses.
        """
        taught = self.taught(recipe.name) or self.load_current(recipe)
        if taught is not None and self._banks.current(recipe.name) is not None:
            self.resume(recipe)
            return taught
        with self._swap:
            made = self._maker.make(recipe, progress, lambda: None)
            self._tell(recipe, made)
        return made

    def teach_anew(self, recipe: RecipeConfig, progress: Progress) -> Taught | Untaught:
        """The recipe's settings are others, and `recipe_of` knows them: `teach`, but what is in memory does not count.

        Until this is done the stations go on by the settings and the bank that they had, as they do when it raises.
        """
        self._give_up(recipe.name, "the recipe's settings are others")
        with self._swap:  # no build of the earlier settings can end from here on
            # A region may have been set since the caller read it; its build may be among those given up.
            recipe = self._recipe_of(recipe.name)
            taught: Taught | Untaught | None = self._load_current(recipe, any_region=False)
            if taught is None:
                taught = self._maker.make(recipe, progress, lambda: None)
                self._tell(recipe, taught)
        self.catch_up(self._recipe_of(recipe.name))
        return taught

    # Builds.

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # on Linux, of this thread alone
        while True:
            with self._wake:
                self._running = None
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._stopping or self._pending)
                if self._stopping:
                    return
                # From here on a registration asks for another build: this one may have read the shots already.
                self._running = build = self._pending.pop(next(iter(self._pending)))
            self._build(build)

    def _build(self, build: _Build) -> None:
        started_s = told_s = time.monotonic()

        def progress(what: str, done: int, total: int) -> None:
            nonlocal told_s
            if self._stopping:
                raise StoppingError("the daemon is stopping")
            if build.given_up is not None:
                raise _GivenUp(build.given_up)
            if time.monotonic() - told_s >= TELL_S:
                told_s = time.monotonic()
                part = PARTS.index(what) if what in PARTS else 0
                share = round((part + done / max(total, 1)) / len(PARTS), 3)
                self._say(build.recipe, "build_progress", {"build": build.id, "doing": what, "share": share})

        try:
            recipe = self._recipe_of(build.recipe)
            if not build.marks_only:
                self._say(build.recipe, "build_started", {"build": build.id})
            before = self.taught(build.recipe)
            with contextlib.ExitStack() as swap:

                def before_commit() -> None:
                    swap.enter_context(self._swap)
                    progress(PARTS[-1], 1, 1)  # a rollback that came first wins

                taught: Taught | Untaught | None
                current = self._banks.current(build.recipe) if build.marks_only else None
                if current is not None:
                    taught = self._maker.refine(recipe, current[0], progress, before_commit)
                else:
                    taught = self._maker.make(recipe, progress, before_commit)
                if taught is None or (build.marks_only and _same(taught, before)):
                    return
                self._tell(recipe, taught)
                self._at("swapped")
                self._banks.prune(build.recipe)
        except StoppingError:
            return
        except Exception as error:  # whatever it is, the old bank goes on, and so does the builder
            if isinstance(error, _GivenUp):
                reason = str(error)
                log.info("recipe %s: build given up: %s", build.recipe, reason)
            elif isinstance(error, AprilcamError | ModelError):
                reason = str(error)
                log.error("recipe %s: build failed, the old bank goes on: %s", build.recipe, reason)  # noqa: TRY400
            else:
                reason = f"{type(error).__name__}: {error}"
                log.exception("recipe %s: build failed, the old bank goes on", build.recipe)
            self._say(build.recipe, "build_failed", {"build": build.id, "reason": reason[:500]})
            return
        detail: Detail = {"build": build.id, "seconds": round(time.monotonic() - started_s, 3)}
        if isinstance(taught, Taught):
            own = taught.calibration
            detail |= {"bank": taught.bank.name if taught.bank else None, "shots": own.shots, "threshold": own.threshold}
            detail |= {"advice": own.advice}
            if (rate := own.false_reject) is not None:
                detail |= {"expected_false_reject": rate.expected, "false_reject_low": rate.low, "false_reject_high": rate.high}
        else:
            detail |= {"bank": None, "reason": taught.reason}
        self._say(build.recipe, "threshold_refined" if build.marks_only else "bank_built", detail)

    def _say(self, recipe: str, kind: EventKind, detail: Detail) -> None:
        try:
            self._on_event(recipe, kind, detail)
        except Exception:  # who is told of builds must not end them
            log.exception("recipe %s: %s could not be told", recipe, kind)

    def _tell(self, recipe: RecipeConfig, taught: Taught | Untaught) -> None:
        """Only with `_swap` held. recipe: the settings by which it was made."""
        self._taught[recipe.name] = taught
        self._on_taught(recipe, taught)
        self._drop_unused(recipe.name)

    # The device.

    def _do(self, work: Steps[T], what: str = "", progress: Progress | None = None) -> T:
        """Have the device's owner do it, in slices."""
        try:
            return self._device.submit_background(telling(work, partial(progress, what)) if progress else work).result()
        except CancelledError:
            raise StoppingError("the daemon is stopping; ask again when it runs") from None


def _same(taught: Taught | Untaught, before: Taught | None) -> bool:
    """Whether marks changed nothing."""
    return isinstance(taught, Untaught) or (before is not None and taught.calibration == before.calibration)
