"""The command `aprilcam`."""

import logging
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from config.errors import AprilcamError, MqttError
from config.schema import Config, FolderCamera, InferenceConfig, PylonCamera
from connectors.tls import tls_use, trouble_of
from daemon.broker_option import BrokerOption, with_broker
from daemon.checks import load_checked
from daemon.command_line import add_commands
from daemon.doctor_command import doctor
from daemon.exposure import exposures
from daemon.logs import LogFormat, is_journal, line_handler, set_up
from daemon.presets import load_preset
from daemon.web.users import Role

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.", show_default=True)]
CategoriesOption = Annotated[str, typer.Option(metavar="A,B", help="Only these categories.")]


def _device(given: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", given):
        raise typer.BadParameter(f"expected cpu, cuda or cuda:N, got {given!r}")
    return given


DeviceOption = Annotated[str, typer.Option(metavar="cpu|cuda[:N]", help="What runs the model.", callback=_device)]
DEFAULT_CONFIG = Path("/etc/aprilcam/aprilcam.toml")
DEFAULT_PRESET = InferenceConfig().preset


class EvaluationMode(StrEnum):
    """By what `evaluate` judges (`model.detector.Mode`)."""

    few_shot = "few_shot"
    zero_shot = "zero_shot"
    both = "both"


@app.callback()
def _aprilcam() -> None:
    """Unattended visual inspection: camera frames in, pass/fail verdicts and defect masks out over MQTT."""


@app.command()
def check(config: ConfigOption = DEFAULT_CONFIG) -> None:
    """Validate a configuration and print what would run. Exit 2 when it cannot."""
    from rich.console import Console as Terminal

    loaded = load_checked(config)
    terminal = Terminal(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if loaded.mqtt.tls is not None and (trouble := trouble_of(loaded.mqtt.tls)) is not None:
        # Only here: a daemon that starts at night with a certificate that expired inspects, and says so.
        raise MqttError(trouble)
    terminal.print(f"{config}: valid", style="bold green")
    for exposure in exposures(loaded):
        terminal.print(f"{exposure}.", style="yellow")
    mqtt, http, inference = loaded.mqtt, loaded.http, loaded.inference
    tls = {"off": "no TLS", "verified": "TLS", "hostname_not_checked": "TLS, host name not checked"}[tls_use(mqtt)]
    rows = [
        ("broker", f"{mqtt.host}:{mqtt.port}, MQTT {mqtt.protocol}, {tls}, topics {mqtt.prefix}/…"),
        ("http", f"{http.host}:{http.port}"),
        ("model", f"{inference.preset} on {inference.device}"),
        ("state", str(loaded.store.path)),
    ]
    for station in loaded.stations:
        recipe = loaded.recipe(station.recipe)
        region = recipe.region
        rows += [
            ("station", station.name),
            ("  camera", _describe_camera(loaded, station.camera)),
            ("  recipe", f"{recipe.name} ({recipe.object})"),
            ("  region", f"x={region.x} y={region.y} {region.width} x {region.height}" if region else "whole frame"),
            ("  shots", f"{recipe.shots}, and those registered before" if recipe.shots else "those registered before"),
            (
                "  judges",
                "every frame" if loaded.takes_every_frame(station) else "the newest frame when they come too fast",
            ),
        ]
    for label, text in rows:
        terminal.print(f"{label:<10}{text}")


@app.command()
def run(
    config: ConfigOption = DEFAULT_CONFIG,
    broker: BrokerOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line per result (for a service whose log is kept).")] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="How the log is written to stderr; json and journal have no line per result.")
    ] = LogFormat.auto,
) -> None:
    """Inspect until stopped (Ctrl-C, SIGTERM). Exit 2 when it cannot start, 1 when the pipeline broke."""
    form = log_format
    if form is LogFormat.auto:
        form = LogFormat.journal if is_journal() else LogFormat.text
    if form is not LogFormat.text:
        set_up(line_handler(form))
    try:
        raise typer.Exit(_run(config, broker, quiet, form))
    except AprilcamError as error:
        if form is LogFormat.text:
            raise
        for line in str(error).splitlines():
            logging.getLogger(__name__).critical("%s", line)
        raise typer.Exit(2) from None


def _run(config: Path, broker: str | None, quiet: bool, form: LogFormat) -> int:

    def read() -> Config:
        return with_broker(load_checked(config), config, broker)

    loaded = read()
    try:
        # torch comes with these: `check` and a wrong file answer without waiting for it
        from daemon.console import Console, LogHandler
        from daemon.service import Service
        from daemon.unwatched import Unwatched
    except KeyboardInterrupt:
        return 0  # nothing was started yet

    with Console(quiet) if form is LogFormat.text else Unwatched() as console:
        if isinstance(console, Console):
            set_up(LogHandler(console.terminal))
        service = Service(loaded, config, console, read)
        service.start()
        try:
            console.started(service)
            code = service.run()
            console.stopping()
        finally:
            service.stop()
        console.summary(service)
    return code


@app.command()
def status(
    config: ConfigOption = DEFAULT_CONFIG,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """How the running daemon is. Exit 0 when every station gives verdicts, 1 when one does not, 2 when no daemon answers."""
    from daemon.status_command import show_status

    raise typer.Exit(show_status(config, as_json=as_json))


@app.command()
def user(
    name: Annotated[str, typer.Argument(help="Who logs in.")],
    role: Annotated[Role, typer.Option(help="A viewer looks, an engineer also changes.")],
) -> None:
    """Ask for a password (or read it from stdin) and print the line for the file of [http] users_file."""
    from daemon.user_command import show_user

    show_user(name, role)


@app.command()
def cameras(
    features: Annotated[str | None, typer.Option(metavar="SERIAL", help="The features of this camera, with values.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """List the cameras that can be seen, or the features of one. Exit 2 when that one is not seen, or taken."""
    from daemon.cameras_command import list_cameras, list_features

    raise typer.Exit(list_cameras(as_json=as_json) if features is None else list_features(features, as_json=as_json))


@app.command()
def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder in MVTec AD's or VisA's layout (see docs/evaluate.md).")],
    shots: Annotated[str, typer.Option(help="Reference shots; several numbers share one pass: 1,2,4,8.")] = "4",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many times shots are drawn.")] = 3,
    categories: CategoriesOption = "",
    preset: Annotated[str, typer.Option(help="A shipped preset's name, or a .toml file.")] = DEFAULT_PRESET,
    mode: Annotated[EvaluationMode, typer.Option(help="Judge by shots, by text, or by both.")] = EvaluationMode.few_shot,
    device: DeviceOption = "cpu",
    json: Annotated[Path | None, typer.Option(help="Keep results here; the same command goes on from there.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="Draw curves, histograms and the worst parts in this folder.")] = None,
) -> None:
    """Measure a preset on a data set: accuracy, false rejects and escapes. Prints Markdown. Exit 2 when it cannot."""
    counts = _counts(shots)
    if mode is EvaluationMode.few_shot and 0 in counts:
        raise typer.BadParameter(
            "0 shots: expected 1 or more for mode few_shot. Choose mode zero_shot or both", param_hint="--shots"
        )
    from model.dataset import read_dataset

    chosen = read_dataset(dataset, _names(categories))
    spec = load_preset(preset, Path.cwd())
    from daemon.evaluate_command import run_evaluation

    raise typer.Exit(run_evaluation(dataset, chosen, spec, mode.value, counts, seeds, device, json, pictures))


def _names(categories: str) -> list[str] | None:
    return [name.strip() for name in categories.split(",") if name.strip()] or None


def _counts(shots: str) -> list[int]:
    try:
        counts = [int(count) for count in shots.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 0:
        raise typer.BadParameter(f"expected a number or several, as in 1,2,4, got {shots!r}", param_hint="--shots")
    return list(dict.fromkeys(counts))


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="A folder laid out as MVTec AD or VisA, with masks of the defects.")],
    preset: Annotated[str, typer.Option(help="A CLIP preset, by name or as a .toml file.")],
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="The linear layers to write; a checkpoint beside it.")],
    categories: CategoriesOption = "",
    epochs: Annotated[int | None, typer.Option(help="Times through. [default: as published, 3 for MVTec AD, 15 VisA]")] = None,
    batch: Annotated[int, typer.Option(help="Pictures in a step.")] = 8,
    device: DeviceOption = "cpu",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 111,
) -> None:
    """Train the linear layers that zero-shot needs, on a data set with masks. The same command goes on when cut off."""
    from daemon.train import run_training

    run_training(dataset, preset, out, categories=_names(categories), epochs=epochs, batch=batch, device=device, seed=seed)


def _describe_camera(config: Config, name: str) -> str:
    camera = config.camera(name)
    if isinstance(camera, FolderCamera):
        return f"{name}: folder {camera.path}"
    which = {"serial": camera.serial, "ip": camera.ip}
    if isinstance(camera, PylonCamera):
        which |= {"user_name": camera.user_name, "emulated, playing": str(camera.emulate) if camera.emulate else None}
    return f"{name}: {camera.driver}, " + " ".join(f"{key} {value}" for key, value in which.items() if value is not None)


add_commands(app)
app.command()(doctor)


def main() -> None:
    """Entry point: every expected error is one message on stderr and exit 2."""
    try:
        app()
    except AprilcamError as error:
        print(f"aprilcam: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # model.errors is a tree of its own (model/ can be lifted out); it is imported only when something it raised is here.
        module = sys.modules.get("model.errors")
        if module is not None and isinstance(error, module.ModelError):
            print(f"aprilcam: {error}", file=sys.stderr)
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
