"""What can be found wrong with a configuration before anything is started."""

from collections.abc import Iterator
from pathlib import Path

from config.errors import CameraError, ConfigError, PictureError, Problem
from config.schema import AravisCamera, CameraConfig, Config, FolderCamera, GenicamCamera, PylonCamera, load_config
from connectors.cameras.pictures import list_pictures, picture_size
from daemon.presets import load_preset
from model.spec import ModelSpec


def load_checked(path: Path) -> Config:
    """`load_config`, then what needs a look at pictures and presets. Raises ConfigError with every problem found."""
    config = load_config(path)
    check(config, path)
    return config


def check(config: Config, path: Path) -> None:
    """Look at pictures and presets of a configuration that was read from there. Raises ConfigError with every problem found."""
    spec = load_preset(config.inference.preset, path.resolve().parent)
    if problems := [*_look(config), *_modes(config, spec)]:
        raise ConfigError(path.resolve(), problems)


def _look(config: Config) -> Iterator[Problem]:
    for index, camera in enumerate(config.cameras):
        folder, key = _folder(camera)
        if folder is not None and folder.exists() and not folder.is_dir():
            yield Problem(f"cameras.{index}.{key}", f"{folder} is not a folder", "Name a folder of pictures")
    for index, recipe in enumerate(config.recipes):
        region = recipe.region
        if region is None:
            continue
        for station in config.stations:
            size = _frame_size(config.camera(station.camera)) if station.recipe == recipe.name else None
            if size is not None and (region.x + region.width > size[0] or region.y + region.height > size[1]):
                reason = (
                    f"x={region.x} y={region.y} {region.width} x {region.height} is outside the {size[0]} x {size[1]} frame "
                    f"of camera {station.camera!r}"
                )
                yield Problem(f"recipes.{index}.region", reason, "Make it fit the frame, or leave it out to take the whole")


def _modes(config: Config, spec: ModelSpec) -> Iterator[Problem]:
    lacks = "knows no words" if spec.family == "timm" else "names no linear_layers"
    for index, recipe in enumerate(config.recipes):
        if recipe.mode in ("zero_shot", "both") and spec.linear_layers is None:
            reason = f"{recipe.mode!r} needs words, and preset {spec.name!r} {lacks}"
            mend = 'Use mode = "few_shot", or a CLIP preset with linear_layers as inference.preset'
            yield Problem(f"recipes.{index}.mode", reason, mend)


def _folder(camera: CameraConfig) -> tuple[Path | None, str]:
    match camera:
        case FolderCamera():
            return camera.path, "path"
        case PylonCamera():
            return camera.emulate, "emulate"
        case AravisCamera():
            return None, ""


def _frame_size(camera: CameraConfig) -> tuple[int, int] | None:
    """(width, height) of the camera's frames where they can be known without opening it."""
    if isinstance(camera, GenicamCamera) and camera.width and camera.height:
        return camera.width, camera.height
    folder, _ = _folder(camera)
    if folder is None or not folder.is_dir():
        return None
    try:
        return picture_size(list_pictures(folder)[0])
    except (PictureError, CameraError, IndexError):
        return None  # what is wrong with the folder is the camera's to tell, when it opens
