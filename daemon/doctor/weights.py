"""The files of the configured model: there, and those that are meant."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from config.errors import ConfigError
from config.schema import InferenceConfig
from daemon.doctor.finding import Finding, Situation
from daemon.presets import load_preset

_FETCH = "Fetch the file again (docs/models.md), or mend the preset"


def look_at_weights(situation: Situation) -> Iterator[Finding]:
    """Of the configured preset, else of the default one."""
    # torch comes with it, which a doctor that was asked for help has no need of
    from model.errors import WeightsError
    from model.weights import weights_file

    config, path = situation.config, situation.config_path
    name = (config.inference if config is not None else InferenceConfig()).preset
    try:
        spec = load_preset(name, path.resolve().parent if path is not None else Path.cwd())
    except ConfigError as error:
        yield Finding("fail", str(error), "Mend [inference] preset")
        return
    if spec.weights.startswith("tag:"):
        mend = "Where there is none: fetch the file elsewhere, and name it in a preset of your own (docs/models.md)"
        yield Finding("warn", f"{name}: {spec.weights} is fetched from its hub at the first start, over a network", mend)
    else:
        try:
            yield _judge(name, weights_file(spec), spec.weights_sha256)
        except WeightsError as error:
            yield Finding("fail", str(error), _FETCH)
    if spec.linear_layers is not None:
        yield _judge(f"{name}: linear layers", Path(spec.linear_layers), spec.linear_layers_sha256)


def _judge(what: str, file: Path, expected: str | None) -> Finding:
    try:
        with file.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return Finding("fail", f"{what}: {file}: {error.strerror}", _FETCH)
    if expected is None:
        mend = f'Pin them: weights_sha256 (linear_layers_sha256) = "{sha256}" in the preset'
        return Finding("warn", f"{what}: {file} is there; no hash says that it is the file which is meant", mend)
    if sha256 != expected.lower():
        return Finding("fail", f"{what}: {file} has sha256 {sha256}, expected {expected}", _FETCH)
    return Finding("ok", f"{what}: {file.name}, sha256 {sha256[:12]}… as expected")
