"""The command `aprilcam train`: what is wrong is told before the hours begin; then a bar with the loss."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from config.errors import ConfigError, Problem, StoreError
from connectors.cameras.pictures import read_picture
from daemon.presets import load_preset
from model.checkpoint import checkpoint_of
from model.clip import ClipExtractor
from model.dataset import VISA_SPLIT, read_dataset
from model.errors import ModelError
from model.examples import check_masks
from model.features import create_extractor
from model.spec import ModelSpec
from model.training import PUBLISHED_MVTEC, PUBLISHED_VISA, Step, train

_SPEED_OVER_S = 600.0
"""The time left is told by the steps of this long: on a CPU one step can take minutes, where rich's own 30 s see none."""


def run_training(
    dataset: Path,
    preset: str,
    out: Path,
    *,
    categories: Sequence[str] | None,
    epochs: int | None,
    batch: int,
    device: str,
    seed: int,
) -> None:
    """Train linear layers and write `out`. Raises AprilcamError and ModelError with one message for the engineer."""
    _check_out(out)
    spec = _clip_of(preset)
    chosen = read_dataset(dataset, categories)
    check_masks(chosen)
    published = PUBLISHED_VISA if (dataset / VISA_SPLIT).exists() else PUBLISHED_MVTEC
    settings = replace(published, epochs=published.epochs if epochs is None else epochs, batch=batch, seed=seed)
    terminal = Terminal(highlight=False, markup=False, emoji=False, soft_wrap=True)
    pictures = sum(len(category.test) for category in chosen)
    terminal.print(
        f"{spec.name} on {device}: {pictures} test pictures of {len(chosen)} categories, {settings.epochs} epochs, "
        f"batches of {settings.batch}"
    )
    extractor = create_extractor(spec, device)
    assert isinstance(extractor, ClipExtractor)  # noqa: S101 - _clip_of saw to it
    checkpoint = checkpoint_of(out)
    with _Bar(terminal, checkpoint) as bar:
        try:
            train(extractor, chosen, settings, out, read=read_picture, report=bar.step)
        except OSError as error:
            raise StoreError(
                f"{out.parent}: cannot be written ({error.strerror or error}). Mend that and give the same command "
                f"again: it goes on from the last checkpoint"
            ) from error
        except KeyboardInterrupt:
            if checkpoint.exists():
                terminal.print("stopped; the same command goes on from the last checkpoint")
            raise
    terminal.print(f"{out}: written. To use it, in a copy of the preset's file set", style="bold green")
    terminal.print(f'    linear_layers = "{out.resolve()}"')
    terminal.print("and name that copy as preset under [inference] in the configuration")


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise ConfigError(out, [Problem("--out", f"expected a .safetensors file, got {out.suffix or 'no suffix'}", "Mend it")])
    if out.exists():
        raise ConfigError(out, [Problem("--out", "there is one already", "Name another file, or remove this one")])
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        reason = f"{out.parent} cannot be written ({error.strerror})"
        raise ConfigError(out, [Problem("--out", reason, "Name a file in a folder of yours")]) from None


def _clip_of(preset: str) -> ModelSpec:
    """The preset without linear layers: those it may name are not needed, and may be the very file to be written."""
    spec = load_preset(preset, Path.cwd())
    if spec.family != "open_clip":
        raise ModelError(
            f"model {spec.name}: training: expected a CLIP (family open_clip), got {spec.family} {spec.backbone}, which knows "
            f"no text. Choose --preset april-gan-vit-b-16, say; {spec.name} needs no training"
        )
    return replace(spec, linear_layers=None, linear_layers_sha256=None)


class _Bar:
    """Steps as a bar with the epoch's mean loss and the time left; without a terminal, a line for each epoch."""

    def __init__(self, terminal: Terminal, checkpoint: Path) -> None:
        self._terminal = terminal
        self._checkpoint = checkpoint
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=terminal,
            speed_estimate_period=_SPEED_OVER_S,
            disable=not terminal.is_terminal,
        )
        self._resumed = self._checkpoint.exists()
        self._task = self._progress.add_task("encoding the prompts", total=None, loss="")
        self._losses: list[float] = []

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, step: Step) -> None:
        done = (step.epoch - 1) * step.steps + step.step
        if self._resumed:
            self._terminal.print(f"goes on from {self._checkpoint}, epoch {step.epoch}, step {step.step} of {step.steps}")
            # Else the steps of the last time would count into the speed of this one.
            self._progress.reset(self._task, total=step.epochs * step.steps, completed=done - 1)
            self._resumed = False
        self._losses.append(step.loss)
        mean = fmean(self._losses)
        self._progress.update(
            self._task,
            completed=done,
            total=step.epochs * step.steps,
            description=f"epoch {step.epoch} of {step.epochs}",
            loss=f"loss {mean:.4f}",
        )
        if step.step == step.steps:
            self._terminal.print(f"epoch {step.epoch} of {step.epochs}: mean loss {mean:.4f}")
            self._losses.clear()
