"""Text vectors by object name, each name encoded once: CLIP's text half is the slowest thing a station starts with."""

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from model.errors import ModelError
from model.features import FeatureExtractor, TextEncoder
from model.files import write_whole
from model.prompts import prompts, text_features


class Texts:
    """The text vectors of one model. ModelError, when made, for a model that knows no text or lacks linear layers.

    folder: where they are kept for the next start, named by a hash of all that made them; None: in memory alone.
    """

    def __init__(self, extractor: FeatureExtractor, folder: Path | None = None) -> None:
        spec = extractor.spec
        if not isinstance(extractor, TextEncoder) or extractor.projection_sha256 is None:
            lacks = "its preset names no linear_layers" if isinstance(extractor, TextEncoder) else "it knows no text"
            raise ModelError(
                f"model {spec.name}: zero-shot: expected a CLIP (family open_clip) with linear_layers, got {spec.family} "
                f"{spec.backbone}: {lacks}. Choose such a preset, or mode few_shot and register shots"
            )
        self._encoder: TextEncoder = extractor
        self._device = extractor.device
        self._made_by = (spec.backbone, extractor.weights_sha256, spec.activation)
        self._folder = folder
        self._known: dict[str, Tensor] = {}

    def of(self, object_name: str) -> Tensor:
        """2 x D, on the device (see `text_features`). ModelError for an empty name."""
        if object_name not in self._known:
            made_by = json.dumps([*self._made_by, *prompts(object_name)]).encode()
            path = self._folder and self._folder / f"{hashlib.sha256(made_by).hexdigest()[:32]}.safetensors"
            text = _read(path) if path else None
            if text is None:
                text = text_features(self._encoder.encode_text, object_name)
                if path:
                    _keep(text, path)
            self._known[object_name] = text.to(self._device)
        return self._known[object_name]


def _read(path: Path) -> Tensor | None:
    """None for a file that is not there or is damaged: it is made again."""
    try:
        text = safetensors.torch.load(path.read_bytes())["text"]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return text if text.ndim == 2 and len(text) == 2 and bool(torch.isfinite(text).all()) else None


def _keep(text: Tensor, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, safetensors.torch.save({"text": text.cpu().contiguous()}))
    except OSError:
        pass  # costs the next start its time; a disk that refuses is told by what must be kept
