"""The tables that `aprilcam evaluate` prints: Markdown that is readable in a terminal and can be pasted as it is."""

import statistics
from collections.abc import Callable, Sequence

from daemon.evaluate_results import CategoryResult, Run
from model.evaluation import Ranking

Value = Callable[[Run], float | None]

_MODES = {"few_shot": "", "zero_shot": "zero-shot", "both": " + text"}


def report(results: Sequence[CategoryResult]) -> str:
    """All tables with their legends, for one or more categories that were judged in the same settings."""
    runs = [run for result in results for run in result.runs]
    seeds = len({run.setting.seed for run in runs})
    parts = [
        "## Verdicts\n",
        _table(results, _VERDICTS),
        "\n" + _VERDICT_LEGEND + _spread(seeds) + (_ZERO_SHOT_LEGEND if any(run.setting.shots == 0 for run in runs) else ""),
        "\n## Where the defect is\n",
        _table(results, _PIXELS),
        "\n" + _PIXEL_LEGEND,
    ]
    if any(run.published is not None for run in runs):
        parts += ["\n## The published image score (needs the test set)\n", _table(results, _PUBLISHED), "\n" + _PUBLISHED_LEGEND]
    return "\n".join([*parts, *_notes(results)]) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _image(part: Callable[[Ranking], float | None]) -> Value:
    return lambda run: part(run.image)


def _published(part: Callable[[Ranking], float | None]) -> Value:
    return lambda run: None if run.published is None else part(run.published)


Columns = Sequence[tuple[str, Value, Callable[[float], str]]]

_VERDICTS: Columns = (
    ("false rejects %", lambda run: run.rates.false_reject, _percent),
    ("escapes %", lambda run: run.rates.escape, _percent),
    ("AUROC %", _image(lambda own: own.auroc), _percent),
    ("F1-max %", _image(lambda own: own.f1_max), _percent),
    ("AP %", _image(lambda own: own.ap), _percent),
    ("ms/picture", lambda run: run.ms_per_picture, _ms),
)
_PIXELS: Columns = (
    ("pixel AUROC %", lambda run: run.pixel.auroc, _percent),
    ("pixel F1-max %", lambda run: run.pixel.f1_max, _percent),
    ("pixel AP %", lambda run: run.pixel.ap, _percent),
    ("PRO %", lambda run: run.pro, _percent),
)
_PUBLISHED: Columns = (
    ("AUROC %", _published(lambda own: own.auroc), _percent),
    ("F1-max %", _published(lambda own: own.f1_max), _percent),
    ("AP %", _published(lambda own: own.ap), _percent),
)

_VERDICT_LEGEND = """\
false rejects: good parts failed, escapes: defective parts passed, both at the threshold calibrated from the shots alone.
AUROC, F1-max, AP: how well the scores put the defective above the good, whatever the threshold (100 = all of them).
ms/picture: from pixels in memory to the anomaly map, on this machine. Mean: of the categories, each counting the same."""
_ZERO_SHOT_LEGEND = "\nzero-shot: at the threshold of even odds, as nothing is calibrated without shots."
_PIXEL_LEGEND = """\
How well the map's pixels put defects above the rest, over all test pictures that are good or have a mask.
PRO: the share found of each defect, small ones counting as much as large ones, while under 30 % of good pixels are marked."""
_PUBLISHED_LEGEND = """\
Scored as in APRIL-GAN's tables: the mean of the image probability and of the map's peak, brought to 0..1 over the whole test
set; zero-shot, the probability alone. A line has no test set, so it never judges by this."""


def _spread(seeds: int) -> str:
    return f"\nMean, and (least..most), over {seeds} draws of the shots." if seeds > 1 else ""


def _notes(results: Sequence[CategoryResult]) -> list[str]:
    """Why there are figures missing, each reason once."""
    notes: dict[str, list[str]] = {}
    for result in results:
        for run in result.runs:
            if run.note:
                where = notes.setdefault(run.note, [])
                where += [] if result.category in where else [result.category]
    unmasked = [result.category for result in results if any(run.pixel.auroc is None for run in result.runs)]
    lines = [f"n/a for {', '.join(where)}: {note}" for note, where in notes.items()]
    lines += [f"n/a for {', '.join(unmasked)}: its defective pictures have no masks"] if unmasked else []
    return ["", *lines] if lines else []


def _table(results: Sequence[CategoryResult], columns: Columns) -> str:
    rows = [["category", "good / bad", "shots", *(name for name, _, _ in columns)]]
    groups = list(dict.fromkeys(run.setting.group for result in results for run in result.runs))
    for group in groups:
        own = [(result, [run for run in result.runs if run.setting.group == group]) for result in results]
        mode, shots = group
        shown = _MODES[mode] if mode == "zero_shot" else f"{shots}{_MODES[mode]}"
        for result, runs in own:
            bad = sum(defect is not None for defect in result.defects)
            counts = f"{len(result.defects) - bad} / {bad}"
            rows.append(
                [result.category, counts, shown, *(_cell([value(run) for run in runs], how) for _, value, how in columns)]
            )
        if len(results) > 1:
            by_seed = list(zip(*(runs for _, runs in own), strict=True))
            means = [_cell([_mean([value(run) for run in runs]) for runs in by_seed], how) for _, value, how in columns]
            rows.append(["**mean**", "", shown, *means])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(_pad(cell, width, at) for at, (cell, width) in enumerate(zip(row, widths, strict=True))) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) if at == 0 else "-" * (width + 1) + ":" for at, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _cell(values: Sequence[float | None], how: Callable[[float], str]) -> str:
    """The mean, and least and most where they differ. n/a when any is: a mean of the rest would be of other draws."""
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return "n/a"
    middle, least, most = how(statistics.fmean(defined)), how(min(defined)), how(max(defined))
    return middle if least == most else f"{middle} ({least}..{most})"


def _mean(values: Sequence[float | None]) -> float | None:
    """Of all categories, or none: see `_cell`."""
    defined = [value for value in values if value is not None]
    return statistics.fmean(defined) if defined and len(defined) == len(values) else None
