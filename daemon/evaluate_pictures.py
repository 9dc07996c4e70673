"""The pictures of an evaluation: curves and histograms, and the parts judged worst, as PNG files."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from config.errors import ResultsError
from connectors.cameras.pictures import read_picture
from daemon.evaluate import Measured, truth_of
from daemon.evaluate_results import CategoryResult, Run
from model.detector import Detector

# Or it tells the terminal that it builds its font cache.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

GOOD, DEFECTIVE, LINE = "#2b7a4b", "#c0392b", "#222222"
WORST = 4
"""Parts of each kind on a sheet."""


def prepare(folder: Path) -> None:
    """Raises ResultsError when the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"{folder}: cannot be made ({error.strerror}). Name a folder of yours for the pictures") from None


def draw_pictures(detector: Detector, measured: Measured, folder: Path) -> None:
    """For each number of shots `<category>-<shots>.png` and, where parts are judged wrong, `<category>-<shots>-worst.png`.

    Histogram and worst parts are of the first draw of the shots, the ROC of all. Raises ResultsError.
    """
    result = measured.result
    groups = list(dict.fromkeys(run.setting.group for run in result.runs))
    for group in groups:
        mode, shots = group
        at = [number for number, run in enumerate(result.runs) if run.setting.group == group]
        runs = [result.runs[number] for number in at]
        name = f"{result.category}-{mode.replace('_', '-')}" + (f"-{shots}" if shots else "")
        try:
            _curves(result, runs).savefig(folder / f"{name}.png", dpi=110)
            if worst := _worst(detector, measured, at[0]):
                worst.savefig(folder / f"{name}-worst.png", dpi=110)
        except OSError as error:
            raise ResultsError(f"{folder}: cannot store {name}.png ({error.strerror}). Free space or mend its rights") from None


def _title(run: Run) -> str:
    return {"few_shot": f"{run.setting.shots} shots", "zero_shot": "zero-shot", "both": f"{run.setting.shots} shots and text"}[
        run.setting.mode
    ]


def _defective(result: CategoryResult) -> NDArray[np.bool_]:
    return np.array([defect is not None for defect in result.defects])


def _curves(result: CategoryResult, runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(f"{result.category}, {_title(runs[0])}")
    left, right = figure.subplots(1, 2)
    _roc(left, result, runs)
    _histogram(right, result, runs[0])
    return figure


def _roc(axes: Axes, result: CategoryResult, runs: Sequence[Run]) -> None:
    defective = _defective(result)
    if defective.all() or not defective.any():
        axes.text(0.5, 0.5, "needs good and defective test pictures", ha="center", va="center")
        axes.set_axis_off()
        return
    for number, run in enumerate(runs):
        false, true, _ = roc_curve(defective, run.scores)
        auroc = 0.0 if run.image.auroc is None else run.image.auroc
        axes.plot(
            100 * false, 100 * true, color=LINE, alpha=1 - 0.6 * number / len(runs), label=f"draw {run.setting.seed}: {auroc:.3f}"
        )
        if run.rates.false_reject is not None and run.rates.escape is not None:
            axes.plot(100 * run.rates.false_reject, 100 - 100 * run.rates.escape, "o", color=DEFECTIVE, clip_on=False)
    axes.set(xlabel="good parts rejected, %", ylabel="defective parts found, %", xlim=(0, 100), ylim=(0, 100.5))
    axes.set_title("ROC (red: at the calibrated threshold)", fontsize=10)
    axes.legend(title="AUROC", loc="lower right", fontsize=8)


def _histogram(axes: Axes, result: CategoryResult, run: Run) -> None:
    scores, defective = np.array(run.scores), _defective(result)
    bins = np.linspace(scores.min(), scores.max() + 1e-9, 41).tolist()
    axes.hist(scores[~defective], bins, color=GOOD, alpha=0.65, label=f"good ({(~defective).sum()})")
    axes.hist(scores[defective], bins, color=DEFECTIVE, alpha=0.55, label=f"defective ({defective.sum()})")
    if run.threshold is not None:
        axes.axvline(run.threshold, color=LINE, linestyle="--", label=f"threshold {run.threshold:.3f}")
    axes.set(xlabel="score", ylabel="test pictures")
    axes.set_title(f"scores, draw {run.setting.seed}", fontsize=10)
    axes.legend(fontsize=8)


def _worst(detector: Detector, measured: Measured, at: int) -> Figure | None:
    """False rejects with the highest scores over escapes with the lowest; None when there is neither."""
    run, result = measured.result.runs[at], measured.result
    if run.threshold is None:
        return None
    scores, defective = np.array(run.scores), _defective(result)
    order = np.argsort(scores)
    rejected = [int(number) for number in order[::-1] if not defective[number] and scores[number] > run.threshold][:WORST]
    escaped = [int(number) for number in order if defective[number] and not scores[number] > run.threshold][:WORST]
    rows = [(title, numbers) for title, numbers in (("false reject", rejected), ("escape", escaped)) if numbers]
    if not rows:
        return None
    figure = Figure(figsize=(2.6 * WORST, 5.2 * len(rows)), layout="constrained")
    figure.suptitle(f"{result.category}, {_title(run)}, draw {run.setting.seed}: worst of the parts judged wrong")
    axes = figure.subplots(2 * len(rows), WORST, squeeze=False)
    for plot in axes.flat:
        plot.set_axis_off()
    for row, (title, numbers) in enumerate(rows):
        pictures = [read_picture(measured.category.test[number].picture) for number in numbers]
        maps = detector.judge(pictures, [measured.references[at]] * len(pictures)).maps
        for column, (number, picture, own) in enumerate(zip(numbers, pictures, maps, strict=True)):
            above, below = axes[2 * row, column], axes[2 * row + 1, column]
            above.imshow(picture, cmap="gray", vmin=0, vmax=255)
            above.set_title(f"{title} {scores[number]:.3f}\n{'/'.join(Path(result.pictures[number]).parts[-2:])}", fontsize=8)
            # The colours end at the threshold: what is brightest would fail the part.
            below.imshow(own, cmap="inferno", vmin=0, vmax=run.threshold)
            true = truth_of(measured.category.test[number], len(own))
            if true is not None and true.mask.any():
                below.contour(true.mask, [0.5], colors="white", linewidths=0.8)
    return figure
