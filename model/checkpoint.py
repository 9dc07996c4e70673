"""A training that was cut off: all that goes on from there, in one .safetensors file. Nothing random is in it.

What is drawn in an epoch follows from seed and epoch alone (`draw_epoch`), so the count of steps is the state of that.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, optim

from model.errors import CheckpointError
from model.files import write_whole
from model.projection import Projection

_LAYERS, _ADAM = "layers.", "adam."


def checkpoint_of(out: Path) -> Path:
    """Where the checkpoint of the training that will write `out` lies: beside it."""
    return out.with_name(f"{out.name}.checkpoint")


def save_checkpoint(path: Path, projection: Projection, adam: optim.Adam, *, run: Mapping[str, Any], steps: int) -> None:
    """Write it, whole or not at all. run: everything the result depends on, as plain JSON values; steps: done so far.

    Raises OSError when the disk refuses.
    """
    tensors = {f"{_LAYERS}{name}": tensor for name, tensor in projection.state_dict().items()}
    for number, moments in adam.state_dict()["state"].items():
        tensors |= {f"{_ADAM}{number}.{name}": tensor for name, tensor in moments.items()}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, safetensors.torch.save(plain, {"run": json.dumps(run), "steps": json.dumps(steps)}))


def load_checkpoint(path: Path, projection: Projection, adam: optim.Adam, *, run: Mapping[str, Any]) -> int:
    """Put layers and optimiser where they were; the steps done, 0 where there is no checkpoint.

    Raises CheckpointError when it was made by another run, or cannot be read.
    """
    if not path.exists():
        return 0
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            stated = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no Mapping
        written, steps = dict(stated["run"]), int(stated["steps"])
        _compare(path, json.loads(json.dumps(run)), written)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(_ADAM):
                number, moment = name.removeprefix(_ADAM).split(".")
                state.setdefault(int(number), {})[moment] = tensor
        layers = {name.removeprefix(_LAYERS): tensor for name, tensor in tensors.items() if name.startswith(_LAYERS)}
        projection.load_state_dict(layers)
        adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error}. Remove it to train from the start") from error
    return steps


def _compare(path: Path, wanted: dict[str, Any], written: dict[str, Any]) -> None:
    for key in wanted | written:
        if wanted.get(key) != written.get(key):
            raise CheckpointError(
                f"{path}: a training that was cut off had {key} {written.get(key)}, this one has "
                f"{wanted.get(key)}. Go on with the settings it was begun with, or remove the file to train from the start"
            )
