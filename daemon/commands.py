"""Every command goes through here, whichever way it came: MQTT, HTTP, the command line or the drop folder.

Nothing here knows of a transport, and nothing here does the work: it checks, asks the parts, counts, and remembers.
"""

import base64
import binascii
import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from config.errors import AprilcamError, ArchiveError, CommandError, StoppingError, StoreError
from connectors import requests as wire
from connectors.contract import Payload
from daemon.answers import bank_out, recipe_out, registered, result_out, shot_out
from daemon.archive_rows import Archived, Selection
from daemon.command_parts import Archive, Frames, Parts, Plant
from daemon.marks import Mark
from daemon.part import Identity
from daemon.teacher import Registered, Teacher
from model.errors import ModelError

log = logging.getLogger(__name__)

T = TypeVar("T")
READING = {"shots", "banks", "results", "recipe_list", "recipe_export"}
"""Commands that change nothing: their answers are not kept."""
REMEMBERED = 4_096
REMEMBERED_S = 600.0
"""How many answers are kept for repeated commands, and for how long."""
REPEAT_WAIT_S = wire.MAX_WAIT_S * 2
"""How long a repeated command waits for the first one's answer."""
STOP_WAIT_S = 5.0


@dataclass(frozen=True)
class _Remembered:
    answer: "Future[dict[str, Any]]"
    began_s: float


class Commands:
    """Runs commands; may be called from any thread. Closed until `open`."""

    def __init__(self, plant: Plant, frames: Frames | None, count: Callable[[str, str], None]) -> None:
        """`frames`: None where no camera runs. `count` is told each command's name and outcome."""
        self._plant = plant
        self._frames = frames
        self._count = count
        self._parts: Parts | None = None
        self._closed_because = "the daemon is starting"
        self._changed = threading.Condition()
        self._running = 0
        self._memory: OrderedDict[tuple[str, ...], _Remembered] = OrderedDict()

    def open(self, parts: Parts) -> None:
        """Take commands from now on."""
        with self._changed:
            self._parts = parts

    def close(self) -> None:
        """Take no more, and wait a little for those that run."""
        with self._changed:
            self._parts, self._closed_because = None, "the daemon is being stopped"
            self._changed.wait_for(lambda: self._running == 0, STOP_WAIT_S)

    def run(
        self, name: str, request: Mapping[str, Any], attachment: bytes | None = None, station: str | None = None
    ) -> dict[str, Any]:
        """The answer, ready for JSON. `station`: whose topic the command came on.

        The same `request_id` with the same content within ten minutes is the same command: it gets the same answer and
        nothing is done twice. Raises CommandError.
        """
        try:
            answer, outcome = self._run(name, request, attachment, station)
        except CommandError as error:
            self.refused(name, error)
            raise
        self._count(name, outcome)
        return answer

    def refused(self, name: str, error: CommandError) -> None:
        """Count a command that did not get as far as `run`."""
        self._count(name if name in wire.REQUESTS else "unknown", error.code)

    def _run(
        self, name: str, document: Mapping[str, Any], attachment: bytes | None, station: str | None
    ) -> tuple[dict[str, Any], str]:
        request = _validated(name, document, station)
        if attachment is not None and name not in wire.ATTACHABLE:
            raise CommandError("malformed", f"{name} takes no picture or file")
        if attachment is not None and len(attachment) > (most := wire.most_attached(name)):
            raise CommandError("too_large", f"{len(attachment)} bytes attached, at most {most}")
        if request.request_id is None or name in READING:
            return self._do(name, request, attachment), "ok"
        digest = hashlib.sha256(request.model_dump_json().encode())
        digest.update(hashlib.sha256(attachment or b"").digest())
        key = (name, request.request_id, digest.hexdigest())
        mine: Future[dict[str, Any]] = Future()
        with self._changed:
            self._forget_old()
            first = self._memory.setdefault(key, _Remembered(mine, time.monotonic())).answer
        if first is not mine:
            try:
                return first.result(REPEAT_WAIT_S), "duplicate"
            except FutureTimeout:
                raise CommandError("busy", f"{name} {request.request_id!r} is still being done") from None
        try:
            answer = self._do(name, request, attachment)
        except BaseException as error:
            # Nothing was done that doing it again would do twice: who sends it again may have better luck.
            with self._changed:
                self._memory.pop(key, None)
            mine.set_exception(error)
            raise
        mine.set_result(answer)
        return answer, "ok"

    def _forget_old(self) -> None:
        now_s = time.monotonic()
        for key, kept in list(self._memory.items()):
            over = len(self._memory) >= REMEMBERED or now_s - kept.began_s > REMEMBERED_S
            if over and kept.answer.done():
                del self._memory[key]

    def _do(self, name: str, request: wire.Request, attachment: bytes | None) -> dict[str, Any]:
        with self._at_work(name) as parts:
            answer: Payload = _HANDLERS[name](self, parts, request, attachment)
        return answer.model_dump(mode="json")

    def export(self, recipe: str) -> bytes:
        """`recipe_export`, but the file as it is and up to its own bound. Raises CommandError."""
        try:
            with self._at_work("recipe_export") as parts:
                file = parts.recipes.export(self._recipe(recipe))
        except CommandError as error:
            self.refused("recipe_export", error)
            raise
        self._count("recipe_export", "ok")
        return file

    def selected(self, request: Mapping[str, Any]) -> list[Archived]:
        """What `results` would list, at most as many as it may. Raises CommandError."""
        try:
            asked = cast("wire.Results", _validated("results", {"limit": wire.MAX_RESULTS, **request}, None))
            with self._at_work("results") as parts:
                found = _found(_wired(parts.archive), asked)
        except CommandError as error:
            self.refused("results", error)
            raise
        self._count("results", "ok")
        return [kept for kept, _ in found]

    @contextmanager
    def _at_work(self, name: str) -> Iterator[Parts]:
        """The parts, for one command; whatever they raise becomes its CommandError."""
        with self._changed:
            parts = self._parts
            if parts is None:
                raise CommandError("busy", f"{self._closed_because}. Try again")
            self._running += 1
        try:
            yield parts
        except CommandError:
            raise
        except StoppingError as error:
            raise CommandError("busy", str(error)) from None
        except StoreError as error:
            raise CommandError("failed", str(error)) from None
        except (AprilcamError, ModelError) as error:
            raise CommandError("refused", str(error)) from None
        except Exception as error:
            log.exception("command %s failed", name)
            raise CommandError("failed", f"{type(error).__name__}: {error}. The daemon's log says more") from None
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    # What each command asks of the parts.

    def _station(self, name: str) -> str:
        if name not in (known := self._plant.stations()):
            raise CommandError("unknown_station", f"no station is named {name!r}. Known: {_listed(known)}")
        return name

    def _recipe(self, name: str | None, station: str | None = None) -> str:
        """The recipe that is meant."""
        if station is not None:
            self._station(station)
        if name is None:
            if station is None:
                raise CommandError("malformed", "no recipe, expected `recipe`, or `station` for the one it has")
            return self._plant.stations()[station]
        if name not in (known := self._plant.recipes()):
            raise CommandError("unknown_recipe", f"no recipe is named {name!r}. Known: {_listed(known)}")
        return name

    def _register(self, parts: Parts, request: wire.Register, attachment: bytes | None) -> wire.RegisterAnswer:
        recipe = self._recipe(request.recipe, request.station)
        given = (request.next is not None, request.last, request.result_id is not None, request.picture is not None)
        if attachment is not None and any(given):
            raise CommandError("malformed", "an attached picture and another source, expected one of them")
        if attachment is None and not any(given):
            raise CommandError("malformed", "no source, expected next, last, result_id, picture, or an attached picture")
        if request.picture is not None:
            attachment = _decoded(request.picture, "picture")
        if request.result_id is not None:
            attachment = _archived(parts, request.result_id)
            _refuse_bad(parts, request.result_id)
        if attachment is not None:
            name = request.name or (f"result {request.result_id}" if request.result_id else "the picture")
            done = [parts.teacher.register(recipe, attachment, name=name, force=request.force)]
        else:
            done = self._register_frames(parts.teacher, recipe, request)
        return registered(recipe, done)

    def _register_frames(self, teacher: Teacher, recipe: str, request: wire.Register) -> list[Registered]:
        station = request.station
        if station is None:
            raise CommandError("malformed", "no station, expected `station`: its frames are to be taken")
        if self._frames is None:
            raise CommandError("refused", "no camera runs. Start the daemon, or register a picture")
        count = 1 if request.next is None else request.next
        done: list[Registered] = []
        for number in range(count):
            frame = self._frames.last(station) if request.last else self._frames.next(station, request.timeout_s)
            if frame is None:
                why = "has had no frame yet" if request.last else f"gave no frame within {request.timeout_s:g} s"
                raise CommandError("refused", f"station {station!r} {why}; {number} of {count} frames are registered")
            name = request.name or f"the {'last' if request.last else 'next'} frame of {station}"
            done.append(teacher.register_pixels(recipe, frame, name=name, force=request.force))
        return done

    def _forget(self, parts: Parts, request: wire.Forget, _: bytes | None) -> wire.ForgetAnswer:
        recipe = self._recipe(request.recipe, request.station)
        known = [shot.shot for shot in parts.teacher.shots(recipe)]
        shot = _only(known, request.shot, f"shots of recipe {recipe!r}", "shots")
        return wire.ForgetAnswer(recipe=recipe, shot=shot, build=parts.teacher.forget(recipe, shot))

    def _shots(self, parts: Parts, request: wire.Shots, _: bytes | None) -> wire.ShotsAnswer:
        recipe = self._recipe(request.recipe, request.station)
        rows, scores = parts.teacher.shots(recipe), parts.teacher.shot_scores(recipe)
        return wire.ShotsAnswer(recipe=recipe, shots=tuple(shot_out(row, scores.get(row.shot)) for row in rows))

    def _banks(self, parts: Parts, request: wire.Banks, _: bytes | None) -> wire.BanksAnswer:
        recipe = self._recipe(request.recipe, request.station)
        return wire.BanksAnswer(recipe=recipe, banks=tuple(bank_out(row) for row in parts.teacher.banks(recipe)))

    def _rebuild(self, parts: Parts, request: wire.Rebuild, _: bytes | None) -> wire.RebuildAnswer:
        recipe = self._recipe(request.recipe, request.station)
        return wire.RebuildAnswer(recipe=recipe, build=parts.teacher.rebuild(recipe))

    def _rollback(self, parts: Parts, request: wire.Rollback, _: bytes | None) -> wire.RollbackAnswer:
        recipe = self._recipe(request.recipe, request.station)
        kept, bank = parts.teacher.banks(recipe), None
        if request.bank is not None:
            bank = _only([row.bank for row in kept], request.bank, f"banks of recipe {recipe!r}", "banks")
        elif not kept or kept[-1].current:
            raise CommandError(
                "refused", f"recipe {recipe!r} has no earlier bank to go back to. `banks` lists those that are kept"
            )
        return wire.RollbackAnswer(recipe=recipe, bank=bank_out(parts.teacher.rollback(recipe, bank)))

    def _recipe_list(self, parts: Parts, _request: wire.RecipeList, _: bytes | None) -> wire.RecipesAnswer:
        return wire.RecipesAnswer(recipes=tuple(recipe_out(view) for view in parts.recipes.all()))

    def _recipe_create(self, parts: Parts, request: wire.RecipeCreate, _: bytes | None) -> wire.RecipeAnswer:
        build = parts.recipes.create(request.recipe, object=request.object, mode=request.mode, region=request.region)
        return wire.RecipeAnswer(recipe=request.recipe, build=build)

    def _recipe_copy(self, parts: Parts, request: wire.RecipeCopy, _: bytes | None) -> wire.RecipeAnswer:
        return wire.RecipeAnswer(recipe=request.to, build=parts.recipes.copy(self._recipe(request.recipe), request.to))

    def _select_recipe(self, parts: Parts, request: wire.SelectRecipe, _: bytes | None) -> wire.RecipeAnswer:
        recipe = self._recipe(request.recipe, request.station)
        parts.recipes.select(request.station, recipe)
        return wire.RecipeAnswer(recipe=recipe, station=request.station)

    def _recipe_delete(self, parts: Parts, request: wire.RecipeDelete, _: bytes | None) -> wire.RecipeAnswer:
        parts.recipes.delete(self._recipe(request.recipe))
        return wire.RecipeAnswer(recipe=request.recipe)

    def _recipe_export(self, parts: Parts, request: wire.RecipeExport, _: bytes | None) -> wire.ExportAnswer:
        file = parts.recipes.export(self._recipe(request.recipe))
        if len(file) > wire.MAX_PICTURE_BYTES:
            mend = f"GET /api/recipes/{request.recipe}/export, or `aprilcam recipe export`, takes up to {wire.MAX_RECIPE_BYTES}"
            raise CommandError("too_large", f"{len(file)} bytes, at most {wire.MAX_PICTURE_BYTES} in an answer. {mend}")
        digest = hashlib.sha256(file).hexdigest()
        return wire.ExportAnswer(recipe=request.recipe, file=base64.b64encode(file).decode(), sha256=digest)

    def _recipe_import(self, parts: Parts, request: wire.RecipeImport, attachment: bytes | None) -> wire.RecipeAnswer:
        if (attachment is None) == (request.file is None):
            raise CommandError("malformed", "expected the exported file, either as `file` in base64 or attached")
        file = attachment if attachment is not None else _decoded(request.file or "", "file")
        recipe, build = parts.recipes.import_(file, request.recipe)
        return wire.RecipeAnswer(recipe=recipe, build=build)

    def _threshold_set(self, parts: Parts, request: wire.ThresholdSet, _: bytes | None) -> wire.ThresholdAnswer:
        recipe = self._recipe(request.recipe, request.station)
        now = parts.recipes.set_threshold(recipe, threshold=request.threshold, factor=request.factor)
        return wire.ThresholdAnswer(recipe=recipe, threshold=now.threshold, stale=now.stale)

    def _region_set(self, parts: Parts, request: wire.RegionSet, _: bytes | None) -> wire.RecipeAnswer:
        recipe, sizes = self._recipe(request.recipe, request.station), {}
        for station in [name for name, own in self._plant.stations().items() if own == recipe]:
            if self._frames is not None and (size := self._frames.size(station)) is not None:
                sizes[station] = size
        return wire.RecipeAnswer(recipe=recipe, build=parts.recipes.set_region(recipe, request.region, sizes))

    def _trigger(self, parts: Parts, request: wire.Trigger, _: bytes | None) -> wire.TriggerAnswer:
        lines = _wired(parts.lines)
        lines.trigger(self._station(request.station), Identity(request.part_id, request.job_id))
        return wire.TriggerAnswer(station=request.station)

    def _part(self, parts: Parts, request: wire.Part, _: bytes | None) -> wire.PartAnswer:
        came = _wired(parts.lines).identify(self._station(request.station), Identity(request.part_id, request.job_id))
        return wire.PartAnswer(station=request.station, came=came)

    def _results(self, parts: Parts, request: wire.Results, _: bytes | None) -> wire.ResultsAnswer:
        archive = _wired(parts.archive)
        rows = [result_out(kept, mark, archive.place(kept)) for kept, mark in _found(archive, request)]
        return wire.ResultsAnswer(results=tuple(rows))

    def _mark(self, parts: Parts, request: wire.Mark, _: bytes | None) -> wire.MarkAnswer:
        archive = _wired(parts.archive)
        recipe = archive.recipe_of(request.result_id)
        if recipe is None or not archive.mark(request.result_id, None if request.verdict == "none" else request.verdict):
            raise CommandError("unknown_result", f"no result {request.result_id!r} is archived")
        # A recipe that is gone has no threshold to move.
        build = parts.teacher.refine(recipe) if recipe in self._plant.recipes() else None
        return wire.MarkAnswer(result_id=request.result_id, verdict=request.verdict, build=build)

    def _promote(self, parts: Parts, request: wire.Promote, _: bytes | None) -> wire.RegisterAnswer:
        picture = _archived(parts, request.result_id)
        archive = _wired(parts.archive)
        _refuse_bad(parts, request.result_id)
        own = archive.recipe_of(request.result_id)
        recipe = self._recipe(request.recipe or own)
        name = f"result {request.result_id}"
        done = parts.teacher.register(recipe, picture, name=name, force=request.force)
        if done.held is None:
            archive.mark(request.result_id, "good")
            # Where it is a shot the mark does not count.
            if own is not None and own != recipe and own in self._plant.recipes():
                parts.teacher.refine(own)
        return registered(recipe, [done])


_HANDLERS: dict[str, Callable[..., Payload]] = {name: getattr(Commands, f"_{name}") for name in wire.REQUESTS}


def _found(archive: Archive, request: wire.Results) -> Sequence[tuple[Archived, Mark | None]]:
    selection = Selection(**request.model_dump(exclude={"request_id", "limit"}))
    try:
        return archive.latest(selection, request.limit)
    except ArchiveError as error:
        raise CommandError("unknown_result", str(error)) from None


def _wired(part: T | None) -> T:
    if part is None:
        raise CommandError("refused", "not available in this daemon")
    return part


def _validated(name: str, document: Mapping[str, Any], station: str | None) -> wire.Request:
    model = wire.REQUESTS.get(name)
    if model is None:
        raise CommandError("unknown_command", f"no command is named {name[:80]!r}. Known: {_listed(wire.REQUESTS)}")
    document = dict(document)
    if station is not None and "station" in model.model_fields and document.setdefault("station", station) != station:
        raise CommandError("malformed", f"station {document['station']!r} in a command to station {station!r}")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    field = ".".join(str(part)[:80] for part in first["loc"])
    if first["type"] == "extra_forbidden":
        reason = f"unknown field. Known: {_listed(model.model_fields)}"
    elif first["type"] == "missing":
        reason = "missing"
    else:
        reason = str(first["msg"]).removeprefix("Value error, ")
        reason = reason[:1].lower() + reason[1:] + (f", got {str(first['input'])[:60]!r}" if field else "")
    raise CommandError("malformed", f"{name}{'.' if field else ''}{field}: {reason}")


def _only(known: Iterable[str], beginning: str, what: str, command: str) -> str:
    """The one hash that begins so."""
    named = [one for one in known if one.startswith(beginning)]
    if len(named) != 1:
        raise CommandError("refused", f"{len(named)} {what} begin with {beginning!r}, expected one. `{command}` lists them")
    return named[0]


def _decoded(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise CommandError("malformed", f"{field}: not base64: {error}") from None


def _refuse_bad(parts: Parts, result_id: str) -> None:
    """One bad shot hides its defect for ever."""
    if _wired(parts.archive).marked(result_id) == "bad":
        mend = "Mark it good first, if it is"
        raise CommandError("refused", f"result {result_id!r} is marked bad, and shots are good parts. {mend}")


def _archived(parts: Parts, result_id: str) -> bytes:
    picture = _wired(parts.archive).picture(result_id)
    if picture is None:
        raise CommandError("unknown_result", f"no picture of result {result_id!r} is archived")
    return picture


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:20]) or "none"
