"""The command `aprilcam evaluate`, once its options are read: what a person at the terminal sees of an evaluation."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from daemon.evaluate import Advance, Measured, check_shots, evaluate, identity, settings_of
from daemon.evaluate_report import report
from daemon.evaluate_results import ResultsFile
from model.dataset import Category
from model.detector import Detector, Mode
from model.features import create_extractor
from model.spec import ModelSpec

INTERRUPTED = 130


def run_evaluation(
    dataset: Path,
    categories: Sequence[Category],
    spec: ModelSpec,
    mode: Mode,
    shots: Sequence[int],
    seeds: int,
    device: str,
    json: Path | None,
    pictures: Path | None,
) -> int:
    """Evaluate, print the tables on stdout and the progress on stderr. Returns the exit code."""
    terminal = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    settings = settings_of(mode, shots, seeds)
    check_shots(categories, settings)
    terminal.print(f"loading {spec.name} on {device} ...", style="dim")
    detector = Detector(create_extractor(spec, device))
    store = None if json is None else ResultsFile(json, identity(detector, dataset, settings))
    draw = _drawing(detector, pictures)
    if store is not None and (known := [own.name for own in categories if own.name in store.finished]):
        undrawn = "; no pictures are drawn of those" if pictures is not None else ""
        terminal.print(
            f"{store.path}: {len(known)} of {len(categories)} categories are there from before ({', '.join(known)}){undrawn}"
        )
    results = []
    try:
        with ExitStack() as stack:
            advance = _bar(stack, terminal, len(categories)) if terminal.is_terminal else _lines(terminal)
            for result in evaluate(detector, categories, settings, advance, store=store, finished=draw):
                results.append(result)
    except KeyboardInterrupt:
        kept = "" if store is None else f"; they are kept in {store.path}, and the same command goes on from there"
        terminal.print(f"stopped: {len(results)} of {len(categories)} categories are done{kept}")
        return INTERRUPTED
    sys.stdout.write(report(results))
    return 0


def _drawing(detector: Detector, pictures: Path | None) -> Callable[[Measured], None]:
    if pictures is None:
        return lambda _: None
    # matplotlib takes a second to import.
    from daemon.evaluate_pictures import draw_pictures, prepare

    prepare(pictures)
    return lambda measured: draw_pictures(detector, measured, pictures)


def _bar(stack: ExitStack, terminal: Console, categories: int) -> Advance:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    progress = stack.enter_context(Progress(*columns, console=terminal))
    tasks: dict[str, TaskID] = {}

    def advance(category: str, done: int, total: int) -> None:
        if category not in tasks:
            tasks[category] = progress.add_task(f"{category} ({len(tasks) + 1} of {categories})", total=total)
        progress.update(tasks[category], completed=done)

    return advance


def _lines(terminal: Console) -> Advance:
    def advance(category: str, done: int, total: int) -> None:
        if done == total:
            terminal.print(f"{category}: {total} pictures done")

    return advance
