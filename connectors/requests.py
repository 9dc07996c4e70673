"""The commands: every request and every answer, in one place (docs/mqtt/commands.schema.json is generated from here).

The same models hold for all ways in: MQTT, HTTP, the command line and the drop folder. Compatibility: fields are only added
to answers; a request with a field that is not known is refused, so that a typing error never passes for consent.
"""

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import models_json_schema

from config.schema import Name, Region
from connectors.contract import Mode, Moment, Payload, Verdict

MAX_PICTURE_BYTES = 64 << 20
"""Largest picture file that a command may bring along, and largest file of any kind in base64."""
MAX_RECIPE_BYTES = 256 << 20
"""Largest recipe file, attached to a command or fetched over HTTP."""
MAX_WAIT_S = 60.0
MAX_NEXT = 32
MAX_RESULTS = 500
MAX_BASE64 = -(-MAX_PICTURE_BYTES // 3) * 4
Code = Literal[
    "unknown_command",
    "malformed",
    "unknown_recipe",
    "unknown_station",
    "unknown_result",
    "refused",
    "busy",
    "too_large",
    "failed",
]
"""Why a command was not done. `busy` passes: send it again. `failed`: the daemon or its disk, not the command."""

ResultId = Annotated[str, Field(pattern=r"^[0-9A-Za-z-]{1,64}$")]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
"""A hash or its beginning."""
Base64 = Annotated[str, Field(min_length=4, max_length=MAX_BASE64)]
Label = Annotated[str, Field(min_length=1, max_length=200)]


_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def _aware(given: object) -> datetime:
    mend = "expected RFC 3339 with its zone, as in 2026-05-04T06:00:00Z or 2026-05-04T08:00:00+02:00 (in an address + is %2B)"
    if not isinstance(given, str) or not _RFC_3339.fullmatch(given.upper()):
        raise ValueError(mend)
    try:
        return datetime.fromisoformat(given.upper())
    except ValueError as error:
        raise ValueError(f"{error}, {mend}") from None


When = Annotated[datetime, BeforeValidator(_aware)]
"""A moment with its zone, as RFC 3339 writes it."""


class Request(BaseModel):
    """Base of every request. The same `request_id` with the same content is one command, however often it comes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    request_id: str | None = Field(default=None, min_length=1, max_length=128)


class RecipeRequest(Request):
    """About one recipe: named, or the one that `station` has now."""

    recipe: Name | None = None
    station: Name | None = None


class Register(RecipeRequest):
    """Make good parts reference shots. From one source: `next` N frames or the `last` frame of the station, the archived
    picture of a `result_id`, or a `picture` file (PNG, JPEG, BMP, TIFF; base64, or attached as it is)."""

    next: int | None = Field(default=None, ge=1, le=MAX_NEXT)
    last: bool = False
    result_id: ResultId | None = None
    picture: Base64 | None = None
    name: Label | None = None
    """What people call the picture, a file name for instance; told in messages."""
    force: bool = False
    """Take a shot even though the present bank finds it far from good."""
    timeout_s: float = Field(default=10.0, gt=0, le=MAX_WAIT_S)
    """How long to wait for each of the `next` frames."""

    @model_validator(mode="after")
    def _one_source(self) -> "Register":
        sources = (self.next is not None, self.last, self.result_id is not None, self.picture is not None)
        if sum(sources) > 1:
            raise ValueError("several sources, expected one of next, last, result_id, picture")
        return self


class Forget(RecipeRequest):
    """Take a shot out of the recipe. `shot` may be the beginning of its hash."""

    shot: Hex


class Shots(RecipeRequest):
    """List the reference shots."""


class Banks(RecipeRequest):
    """List the banks that are kept, newest first."""


class Rebuild(RecipeRequest):
    """Build the bank again from the shots."""


class Rollback(RecipeRequest):
    """Go back to a kept bank; without `bank` to the one before the present one."""

    bank: Hex | None = None


class RecipeList(Request):
    """List the recipes."""


class RecipeCreate(Request):
    """Make a recipe that the configuration file does not have."""

    recipe: Name
    object: str = Field(min_length=1, max_length=100)
    mode: Mode | None = None
    region: Region | None = None


class RecipeCopy(Request):
    """Make a recipe with another's settings, shots and threshold."""

    recipe: Name
    to: Name


class SelectRecipe(Request):
    """Let a station inspect by another recipe, from its next frame on and over restarts. What judges it is loaded first; where
    its bank is still to be built the answer is `busy`."""

    station: Name
    recipe: Name


class RecipeDelete(Request):
    """Remove a recipe that no station has, with its shots and banks."""

    recipe: Name


class RecipeExport(Request):
    """One file with shots, thresholds and manifest, in base64. A larger one than fits is fetched over HTTP."""

    recipe: Name


class RecipeImport(Request):
    """Take in an exported file (base64, or attached as it is), under its own name or another."""

    recipe: Name | None = None
    file: Base64 | None = None


class ThresholdSet(RecipeRequest):
    """Set the threshold: absolute, or as a factor of the calibrated one, which follows every new bank; neither goes back to the
    configured or calibrated one."""

    threshold: float | None = Field(default=None, gt=0, le=100)
    factor: float | None = Field(default=None, gt=0, le=100)

    @model_validator(mode="after")
    def _one(self) -> "ThresholdSet":
        if self.threshold is not None and self.factor is not None:
            raise ValueError("both threshold and factor, expected one of them")
        return self


class RegionSet(RecipeRequest):
    """Set the region of interest, in pixels of the frame; null goes back to the configured one, or the one the recipe was made
    with. A station changes region and bank together, between two frames, when `build` has ended."""

    region: Region | None = None


class Trigger(Request):
    """Take a part now: one software trigger (or as many as the part has frames), one result, which carries the identity."""

    station: Name
    part_id: Label | None = None
    job_id: Label | None = None


class Part(Request):
    """Name a part that a sensor or nobody triggers: the oldest that came within `part_after_ms` before this, else the next
    within `part_before_ms`."""

    station: Name
    part_id: Label
    job_id: Label | None = None


class Results(Request):
    """List archived results, newest first: those for which all holds that is given. `since` this moment and `until` (not at)
    that one they were made; `before`: those that follow this result_id, and so the next page."""

    station: Name | None = None
    recipe: Name | None = None
    verdict: Verdict | None = None
    since: When | None = None
    until: When | None = None
    before: ResultId | None = None
    limit: int = Field(default=20, ge=1, le=MAX_RESULTS)


class Mark(Request):
    """Say what an archived part really was; marks move the threshold. `none` takes a mark back."""

    result_id: ResultId
    verdict: Literal["good", "bad", "none"]


class Promote(Request):
    """Make the archived picture of a good part a reference shot."""

    result_id: ResultId
    recipe: Name | None = None
    force: bool = False


class HeldOut(Payload):
    """Why a shot was held back: it scores above `limit`, far above `threshold`. `force` takes it all the same."""

    score: float
    threshold: float
    limit: float


class RegisteredOut(Payload):
    """What became of one picture. Held back: it is no shot. Not `new`: the same pixels were a shot already."""

    shot: str
    new: bool
    held: HeldOut | None
    warnings: tuple[str, ...]
    build: str | None


class RegisterAnswer(Payload):
    """Every picture of a registration, in order; what is not held back is durable."""

    recipe: str
    shots: tuple[RegisteredOut, ...]


class ForgetAnswer(Payload):
    """The shot that is gone, and the build that will leave it out."""

    recipe: str
    shot: str
    build: str | None


class ShotOut(Payload):
    """A reference shot: SHA-256 of its pixels, its file in the state folder, its size in pixels.

    score: what it scores against the bank that judges, made without it; null where that bank does not hold it (yet), and for a
    lone shot.
    """

    shot: str
    file: str
    width: int
    height: int
    score: float | None


class ShotsAnswer(Payload):
    """The shots in the order in which they were registered."""

    recipe: str
    shots: tuple[ShotOut, ...]


class RateOut(Payload):
    """How often something is to be expected, 0 to 1; the truth lies between `low` and `high` in 95 of 100 cases."""

    expected: float
    low: float
    high: float


class MarksOut(Payload):
    """What marked parts made of the threshold, which would be `shots_threshold` without them.

    `false_reject`, `escape`: to be expected of parts like those marked. `rejected`: so many marked good fail all the same;
    `escaped`: so many marked bad pass.
    """

    good: int
    bad: int
    shots_threshold: float
    false_reject: RateOut | None
    escape: RateOut | None
    rejected: int
    escaped: int


class BankOut(Payload):
    """A kept bank and its calibration. `advice`: what it came from, and what would make it better.

    false_reject: share of good parts that will fail; null where the shots cannot tell.
    """

    bank: str
    built_at: Moment
    current: bool
    shots: int
    threshold: float
    provisional: bool
    advice: str
    false_reject: RateOut | None
    marks: MarksOut | None


class BanksAnswer(Payload):
    """The banks, newest first."""

    recipe: str
    banks: tuple[BankOut, ...]


class RebuildAnswer(Payload):
    """The build that was asked for."""

    recipe: str
    build: str


class RollbackAnswer(Payload):
    """The bank that judges now."""

    recipe: str
    bank: BankOut


class OverrideOut(Payload):
    """What an engineer set: an absolute threshold, or a factor of the calibrated one."""

    threshold: float | None
    factor: float | None


class RecipeOut(Payload):
    """A recipe. `configured`: the configuration file has it, else it was made at run time. `bank`, `threshold`: what judges it,
    or would if a station had it. `threshold_stale`: it was set as a number against another calibration."""

    recipe: str
    object: str
    mode: Mode | None
    region: Region | None
    configured: bool
    stations: tuple[str, ...]
    shots: int
    bank: str | None
    threshold: float | None
    threshold_stale: bool
    override: OverrideOut | None


class RecipesAnswer(Payload):
    """Every recipe, those of the configuration file first."""

    recipes: tuple[RecipeOut, ...]


class RecipeAnswer(Payload):
    """A recipe was made, changed, removed or selected. build: id of the build that makes its bank."""

    recipe: str
    station: str | None = None
    build: str | None = None


class ExportAnswer(Payload):
    """An exported recipe: the file in base64."""

    recipe: str
    file: str
    sha256: str


class ThresholdAnswer(Payload):
    """The threshold in force, null while nothing is calibrated. `stale`: it was set against another calibration."""

    recipe: str
    threshold: float | None
    stale: bool = False


class TriggerAnswer(Payload):
    """The camera took the trigger; exactly one result follows."""

    station: str


class PartAnswer(Payload):
    """`came`: the part had come already; else the name waits for the next one."""

    station: str
    came: bool


class KeptResultOut(Payload):
    """An archived result, and what it was marked as. `picture`: its file, in the state folder; `bytes`: of all its files."""

    result_id: str
    station: str
    recipe: str
    bank: str | None
    verdict: Verdict
    reason: str | None
    score: float | None
    threshold: float | None
    created_at: Moment
    mark: Literal["good", "bad"] | None
    picture: str
    bytes: int


class ResultsAnswer(Payload):
    """Archived results, newest first."""

    results: tuple[KeptResultOut, ...]


class MarkAnswer(Payload):
    """The mark is kept, and the build that lets it move the threshold."""

    result_id: str
    verdict: str
    build: str | None


class ErrorOut(Payload):
    """Why a command was not done."""

    code: Code
    message: str


class ReplyOut(Payload):
    """What MQTT says to a command: `answer` when `ok`, else `error`."""

    schema_: Literal["aprilcam.reply/1"] = Field(default="aprilcam.reply/1", alias="schema")
    command: str
    request_id: str | None
    ok: bool
    answer: dict[str, Any] | None = None
    error: ErrorOut | None = None


REQUESTS: dict[str, type[Request]] = {
    "register": Register,
    "forget": Forget,
    "shots": Shots,
    "banks": Banks,
    "rebuild": Rebuild,
    "rollback": Rollback,
    "recipe_list": RecipeList,
    "recipe_create": RecipeCreate,
    "recipe_copy": RecipeCopy,
    "select_recipe": SelectRecipe,
    "recipe_delete": RecipeDelete,
    "recipe_export": RecipeExport,
    "recipe_import": RecipeImport,
    "threshold_set": ThresholdSet,
    "region_set": RegionSet,
    "trigger": Trigger,
    "part": Part,
    "results": Results,
    "mark": Mark,
    "promote": Promote,
}
ANSWERS: dict[str, type[Payload]] = {
    "register": RegisterAnswer,
    "forget": ForgetAnswer,
    "shots": ShotsAnswer,
    "banks": BanksAnswer,
    "rebuild": RebuildAnswer,
    "rollback": RollbackAnswer,
    "recipe_list": RecipesAnswer,
    "recipe_create": RecipeAnswer,
    "recipe_copy": RecipeAnswer,
    "select_recipe": RecipeAnswer,
    "recipe_delete": RecipeAnswer,
    "recipe_export": ExportAnswer,
    "recipe_import": RecipeAnswer,
    "threshold_set": ThresholdAnswer,
    "region_set": RecipeAnswer,
    "trigger": TriggerAnswer,
    "part": PartAnswer,
    "results": ResultsAnswer,
    "mark": MarkAnswer,
    "promote": RegisterAnswer,
}
ATTACHABLE = {"register": "picture", "recipe_import": "file"}
"""Commands that may bring a file along, and the field that holds it in base64 where it cannot be attached."""


def most_attached(command: str) -> int:
    """Most bytes of the file that a command brings along."""
    return MAX_RECIPE_BYTES if command == "recipe_import" else MAX_PICTURE_BYTES


def schema_files() -> Iterator[tuple[str, str]]:
    """(file name, text) of the JSON Schemas of commands and replies that docs/mqtt ships."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    requests, definitions = models_json_schema([(model, "validation") for model in REQUESTS.values()])
    commands = {name: requests[(model, "validation")] for name, model in REQUESTS.items()}
    _, answers = models_json_schema([(model, "serialization") for model in dict.fromkeys(ANSWERS.values())])
    both = {
        **dialect,
        "title": "Requests (by command) and answers",
        "commands": {
            name: {"request": request, "answer": {"$ref": f"#/$defs/{ANSWERS[name].__name__}"}}
            for name, request in commands.items()
        },
        "$defs": {**definitions["$defs"], **answers["$defs"]},
    }
    yield "commands.schema.json", json.dumps(both, indent=2) + "\n"
    reply = {**dialect, **ReplyOut.model_json_schema(by_alias=True, mode="serialization")}
    yield "reply.schema.json", json.dumps(reply, indent=2) + "\n"


if __name__ == "__main__":
    for file_name, text in schema_files():
        (Path(sys.argv[1]) / file_name).write_text(text)
