"""`aprilcam register`, `forget`, `shots`, `banks`, `rebuild`, `rollback`, `recipe`, `mark`, `promote`: commands from a shell."""

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from config.errors import CommandError
from config.schema import load_config
from connectors.requests import most_attached
from daemon.client import connect

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.", show_default=True)]
RecipeOption = Annotated[str, typer.Option("--recipe", "-r", metavar="NAME", help="The recipe.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Take it even though the bank finds it far from good.")]
DEFAULT_CONFIG = Path("/etc/aprilcam/aprilcam.toml")
HELD = 2
PIPED_WIDTH = 200
"""Columns of a table that no terminal shows."""

recipes = typer.Typer(no_args_is_help=True, help="Make, change and move recipes.")


class Verdict(StrEnum):
    """What the daemon said of a part."""

    passed = "pass"
    fail = "fail"
    unknown = "unknown"


class Truth(StrEnum):
    """What a part really was; none: nobody says."""

    good = "good"
    bad = "bad"
    none = "none"


class Mode(StrEnum):
    """By what a recipe judges (`model.detector.Mode`)."""

    few_shot = "few_shot"
    zero_shot = "zero_shot"
    both = "both"


def add_commands(app: typer.Typer) -> None:
    """Put them into the `aprilcam` command."""
    for command in (register, forget, shots, banks, rebuild, rollback, results, mark, promote):
        app.command()(command)
    app.add_typer(recipes, name="recipe")


def register(
    recipe: RecipeOption,
    images: Annotated[list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Pictures of good parts.")] = None,
    result: Annotated[str | None, typer.Option(metavar="ID", help="The archived picture of a result.")] = None,
    next_: Annotated[int | None, typer.Option("--next", metavar="N", help="The next N frames of the station.")] = None,
    last: Annotated[bool, typer.Option("--last", help="The last frame of the station.")] = False,
    station: Annotated[str | None, typer.Option(metavar="NAME", help="Whose frames, for --next and --last.")] = None,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="For each of the next frames.")] = 10.0,
    force: ForceOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Make good parts reference shots, while the daemon runs or not. Exit 2 when one could not be taken."""
    images = images or []
    if sum((bool(images), result is not None, next_ is not None, last)) != 1:
        raise typer.BadParameter("expected exactly one of IMAGE..., --result, --next, --last")
    if (next_ is not None or last) and station is None:
        raise typer.BadParameter("--next and --last need --station: its frames are to be taken", param_hint="--station")
    request: dict[str, Any] = {"recipe": recipe, "force": force}
    if images:
        raise typer.Exit(_register_files(config, request, images))
    given = {"result_id": result, "next": next_, "station": station}
    request |= {field: value for field, value in given.items() if value is not None}
    request |= {"last": True} if last else {"timeout_s": wait} if next_ is not None else {}
    with connect(config) as runner:
        answer = runner.run("register", request)
    raise typer.Exit(_tell_shots(Terminal(highlight=False, markup=False, soft_wrap=True), answer, ""))


def _register_files(config: Path, request: dict[str, Any], images: Sequence[Path]) -> int:
    """One picture at a time; one that is refused does not stop the others."""
    terminal = Terminal(highlight=False, markup=False, soft_wrap=True)
    columns = (TextColumn("registering"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    shown = len(images) > 1 and terminal.is_terminal
    code = 0
    with connect(config) as runner, Progress(*columns, console=terminal, disable=not shown) as progress:
        for image in progress.track(images):
            try:
                answer = runner.run("register", {**request, "name": image.name}, _content(image, "register"))
                code = _tell_shots(terminal, answer, f"{image}: ") or code
            except CommandError as error:
                if error.code in ("unknown_recipe", "unauthorized", "forbidden", "busy", "failed"):
                    raise  # the others would be answered the same
                print(f"aprilcam: {image}: {error}", file=sys.stderr)
                code = HELD
    return code


def _content(file: Path, command: str) -> bytes:
    """What the command is to bring along, no more than tells that it is too large."""
    try:
        with file.open("rb") as opened:
            return opened.read(most_attached(command) + 1)
    except OSError as error:
        raise CommandError("refused", f"{(error.strerror or str(error)).lower()}. Name a file that can be read") from None


def _tell_shots(terminal: Terminal, answer: dict[str, Any], label: str) -> int:
    code = 0
    for shot in answer["shots"]:
        if (held := shot["held"]) is not None:
            reason = f"scores {held['score']:.4f}, threshold {held['threshold']:.4f}; if it is a good part, use --force"
            terminal.print(f"{label}held back: {reason}", style="yellow")
            code = HELD
        else:
            what = "new shot" if shot["new"] else "already a shot"
            build = f", in {shot['build']}" if shot["build"] else ""
            terminal.print(f"{label}{what} {shot['shot'][:16]}{build}")
        for warning in shot["warnings"]:
            terminal.print(f"{label}warning: {warning}", style="yellow")
    return code


def forget(
    recipe: RecipeOption,
    shot: Annotated[str, typer.Argument(help="Its hash, or the first 8 figures or more of it; `shots` lists them.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Take a reference shot out again."""
    with connect(config) as runner:
        answer = runner.run("forget", {"recipe": recipe, "shot": shot})
    print(f"forgotten: {answer['shot'][:16]}" + (f", in {answer['build']}" if answer["build"] else ""))


def shots(recipe: RecipeOption, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """List a recipe's reference shots."""
    with connect(config) as runner:
        rows = runner.run("shots", {"recipe": recipe})["shots"]
    _print_table(("shot", "size", "score", "file"), (_shot_row(row) for row in rows))


def _shot_row(row: dict[str, Any]) -> tuple[str, ...]:
    score = f"{row['score']:.4f}" if row["score"] is not None else "not known"
    return row["shot"][:16], f"{row['width']} x {row['height']}", score, row["file"]


def banks(recipe: RecipeOption, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """List a recipe's banks, newest first."""
    with connect(config) as runner:
        rows = runner.run("banks", {"recipe": recipe})["banks"]
    columns = ("bank", "", "built at (UTC)", "shots", "threshold", "expected false rejects")
    _print_table(columns, (_bank_row(row) for row in rows))
    for row in rows:
        if row["current"]:
            print(row["advice"])


def _bank_row(row: dict[str, Any]) -> tuple[str, ...]:
    threshold = f"{row['threshold']:.4f}{' (provisional)' if row['provisional'] else ''}"
    expected = "not known"
    if (rate := row["false_reject"]) is not None:
        expected = f"{rate['expected']:.0%} ({rate['low']:.0%} to {rate['high']:.0%})"
    return row["bank"][:16], "judges" if row["current"] else "", row["built_at"][:19], str(row["shots"]), threshold, expected


def rebuild(recipe: RecipeOption, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Build a recipe's bank again from its shots."""
    with connect(config) as runner:
        print(f"building: {runner.run('rebuild', {'recipe': recipe})['build']}")


def rollback(
    recipe: RecipeOption,
    bank: Annotated[str | None, typer.Argument(help="Which; the one before the present one when left out.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Go back to an earlier bank."""
    with connect(config) as runner:
        row = runner.run("rollback", {"recipe": recipe} | ({"bank": bank} if bank else {}))["bank"]
    print(f"bank {row['bank'][:16]} judges: {row['shots']} shots, threshold {row['threshold']:.4f}")


def results(
    station: Annotated[str | None, typer.Option(metavar="NAME", help="Of this station only.")] = None,
    verdict: Annotated[Verdict | None, typer.Option(help="With this verdict only.")] = None,
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="Judged by this recipe only.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Made then or later: 2026-05-04T08:00:00+02:00.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Made before.")] = None,
    before: Annotated[str | None, typer.Option(metavar="RESULT", help="Those that follow this one: the next page.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="At most so many.", min=1, max=500)] = 20,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """List archived results, newest first: what can be marked and promoted."""
    given = {"station": station, "recipe": recipe, "verdict": verdict.value if verdict else None}
    given |= {"since": since, "until": until, "before": before}
    request = {"limit": limit, **{field: value for field, value in given.items() if value is not None}}
    with connect(config) as runner:
        rows = runner.run("results", request)["results"]
    columns = ("result", "time (UTC)", "station", "verdict", "score", "marked")
    _print_table(columns, (_result_row(row) for row in rows))
    if rows:
        folder = Path(rows[0]["picture"]).parent
        print(f"pictures, anomaly maps and results: {load_config(config).store.path / folder} and beside it")


def _result_row(row: dict[str, Any]) -> tuple[str, ...]:
    score = row["reason"] if row["score"] is None else f"{row['score']:.4f} {_sign(row)} {row['threshold']:.4f}"
    return row["result_id"], row["created_at"][:19], row["station"], row["verdict"], score or "", row["mark"] or ""


def _sign(row: dict[str, Any]) -> str:
    return ">" if row["verdict"] == "fail" else "≤"


def mark(
    result: Annotated[str, typer.Argument(metavar="RESULT", help="A result_id.")],
    verdict: Annotated[Truth, typer.Argument(help="What the part really was.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Say what an archived part really was; marks refine the threshold. `none` takes a mark back."""
    with connect(config) as runner:
        answer = runner.run("mark", {"result_id": result, "verdict": verdict.value})
    what = f"is marked {verdict.value}" if verdict is not Truth.none else "is marked no more"
    print(f"{result} {what}" + (f"; the threshold follows in {answer['build']}" if answer["build"] else ""))


def promote(
    result: Annotated[str, typer.Argument(metavar="RESULT", help="The result_id of a good part.")],
    force: ForceOption = False,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Make the archived picture of a good part a reference shot."""
    with connect(config) as runner:
        answer = runner.run("promote", {"result_id": result, "force": force})
    raise typer.Exit(_tell_shots(Terminal(highlight=False, markup=False, soft_wrap=True), answer, ""))


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE")]


@recipes.command(name="list")
def list_(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """List the recipes: what judges them, which stations inspect by them, and whether the configuration file has them."""
    with connect(config) as runner:
        rows = runner.run("recipe_list", {})["recipes"]
    columns = ("recipe", "object", "stations", "shots", "bank", "threshold", "from")
    _print_table(columns, (_recipe_row(row) for row in rows))


def _recipe_row(row: dict[str, Any]) -> tuple[str, ...]:
    threshold, override = row["threshold"], row["override"] or {}
    notes = [f"{override['factor']:g} x calibrated"] if override.get("factor") else ["set"] if override.get("threshold") else []
    notes += ["stale"] if row["threshold_stale"] else []
    shown = f"{threshold:.4f}" if threshold is not None else ""
    return (
        row["recipe"],
        row["object"],
        ", ".join(row["stations"]),
        str(row["shots"]),
        row["bank"] or "",
        f"{shown} ({', '.join(notes)})".strip() if notes else shown,
        "file" if row["configured"] else "made",
    )


@recipes.command()
def create(
    recipe: RecipeName,
    object_: Annotated[str, typer.Option("--object", help="What the part is called, in a word or two.")],
    mode: Annotated[Mode | None, typer.Option(help="By what it judges.  [default: all that the model knows]")] = None,
    region: Annotated[str | None, typer.Option(metavar="X,Y,W,H", help="Only this part of the frame, in pixels.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Make a recipe; teach it with `aprilcam register`."""
    request: dict[str, Any] = {"recipe": recipe, "object": object_}
    request |= {"mode": mode.value} if mode is not None else {}
    request |= {"region": _region(region, "--region")} if region is not None else {}
    _made(config, "recipe_create", request)


def _region(given: str, hint: str) -> dict[str, int]:
    try:
        x, y, width, height = (int(number) for number in given.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected four numbers as in 0,0,640,480, got {given!r}", param_hint=hint) from None
    return {"x": x, "y": y, "width": width, "height": height}


@recipes.command()
def copy(recipe: RecipeName, to: Annotated[str, typer.Argument()], config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Make a recipe with another's settings, shots and threshold."""
    _made(config, "recipe_copy", {"recipe": recipe, "to": to})


@recipes.command()
def select(
    recipe: RecipeName,
    station: Annotated[str, typer.Option(metavar="NAME", help="Which station.")],
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Let a station inspect by this recipe, from its next frame on and over restarts."""
    with connect(config) as runner:
        runner.run("select_recipe", {"recipe": recipe, "station": station})
    print(f"{station} inspects by {recipe}")


@recipes.command()
def delete(recipe: RecipeName, config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Remove a recipe that no station has, with its shots and banks."""
    with connect(config) as runner:
        runner.run("recipe_delete", {"recipe": recipe})
    print(f"removed {recipe}")


@recipes.command()
def threshold(
    recipe: RecipeName,
    value: Annotated[float | None, typer.Argument(help="Absolute; without it and --factor the calibrated one.")] = None,
    factor: Annotated[float | None, typer.Option(help="Of the calibrated threshold; it follows every new bank.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Set a recipe's threshold."""
    given = {"threshold": value, "factor": factor}
    request = {"recipe": recipe, **{field: number for field, number in given.items() if number is not None}}
    with connect(config) as runner:
        answer = runner.run("threshold_set", request)
    known = f"{answer['threshold']:.4f}" if answer["threshold"] is not None else "not known before the first bank"
    print(f"threshold {known}{' (stale)' if answer['stale'] else ''}")


@recipes.command()
def region(
    recipe: RecipeName,
    area: Annotated[str | None, typer.Argument(metavar="X,Y,W,H", help="In pixels; without it the recipe's own.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Set a recipe's region of interest; stations change to it when its bank is built."""
    request = {"recipe": recipe, "region": _region(area, "X,Y,W,H") if area is not None else None}
    with connect(config) as runner:
        answer = runner.run("region_set", request)
    print(f"region {area or 'of its own'}" + (f", in {answer['build']}" if answer["build"] else ""))


@recipes.command()
def export(recipe: RecipeName, file: Annotated[Path, typer.Argument()], config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Write a recipe with its shots into one file."""
    with connect(config) as runner:
        content = runner.export(recipe)
    try:
        file.write_bytes(content)
    except OSError as error:
        raise CommandError("refused", f"{file}: {error.strerror}. Name a file that can be written") from None
    print(f"{file}: {len(content)} bytes")


@recipes.command(name="import")
def import_(
    file: Annotated[Path, typer.Argument()],
    name: Annotated[str | None, typer.Option(help="Under this name.  [default: its own]")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Take in an exported recipe."""
    _made(config, "recipe_import", {"recipe": name} if name else {}, _content(file, "recipe_import"))


def _made(config: Path, command: str, request: dict[str, Any], attachment: bytes | None = None) -> None:
    with connect(config) as runner:
        answer = runner.run(command, request, attachment)
    print(f"made {answer['recipe']}" + (f", in {answer['build']}" if answer["build"] else ""))


def _print_table(columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        # What is copied into the next command stays in one piece.
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    for row in rows:
        table.add_row(*row)
    terminal = Terminal(highlight=False, markup=False, emoji=False)
    if not terminal.is_terminal:
        terminal.width = PIPED_WIDTH
    terminal.print(table)
