"""An object's name to text vectors: APRIL-GAN's prompt ensemble (arXiv 2305.17382, section 3.1; lists in prompts.json)."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

from model.errors import ModelError

_GROUPS = ("normal_states", "abnormal_states")


@cache
def _lists() -> dict[str, list[str]]:
    lists: dict[str, list[str]] = json.loads((files("model") / "prompts.json").read_text(encoding="utf-8"))
    return lists


def prompts(object_name: str) -> tuple[list[str], list[str]]:
    """The sentences about a normal and about an abnormal object: every state in every template, 245 and 175."""
    name = object_name.strip()
    if not name:
        raise ModelError(
            f"prompts: expected the object's name, as one would say it ('metal nut'), got {object_name!r}. Name the object"
        )
    lists = _lists()
    normal, abnormal = (
        [template.format(state.format(name)) for state in lists[group] for template in lists["templates"]] for group in _GROUPS
    )
    return normal, abnormal


def text_features(encode: Callable[[Sequence[str]], Tensor], object_name: str) -> Tensor:
    """What normal and abnormal look like in words: 2 x D, float32, L2-normalised, normal first.

    encode: `TextEncoder.encode_text`. Per group each sentence is normalised, then their mean is, as published.
    """
    with torch.no_grad():
        means = [F.normalize(encode(group), dim=-1).mean(0) for group in prompts(object_name)]
        return F.normalize(torch.stack(means), dim=-1)
