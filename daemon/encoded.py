"""Features of encoded shots, kept on disk so that one more shot encodes no other. A cache: it may be deleted."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from daemon.shots import Box
from model.features import JointFeatures, PatchFeatures

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
FORMAT = 2
"""Raised whenever a file comes to hold other pictures of a shot."""


class EncodedShots:
    """Owner of the folder `recipes/<name>/features`: one file for each shot and way of encoding. Used by one thread.

    A file holds features of two pictures: the shot, and its mirror image, which the threshold needs.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], linear_layers_sha256: str | None, region: Box | None
    ) -> None:
        """What the features depend on besides the shot: the model, its linear layers, the region of interest."""
        self._folder = folder
        key = json.dumps([FORMAT, fingerprint, linear_layers_sha256, region], sort_keys=True, separators=(",", ":"))
        self._key = hashlib.sha256(key.encode()).hexdigest()

    def _path(self, shot: str) -> Path:
        return self._folder / f"{shot[:16]}-{self._key[:16]}{SUFFIX}"

    def load(self, shot: str) -> PatchFeatures | None:
        """Features of a shot and its mirror image, in the host's memory.

        None when they are not there, damaged, or made another way.
        """
        path = self._path(shot)
        try:
            data = path.read_bytes()
            length = int.from_bytes(data[:8], "little")
            metadata = json.loads(data[8 : 8 + length])["__metadata__"]
            told = metadata["shot"], metadata["key"], metadata["sha256"]
            if told != (shot, self._key, hashlib.sha256(memoryview(data)[8 + length :]).hexdigest()):
                log.warning("%s: its hash does not fit; the shot is encoded again", path)
                return None
            tensors = safetensors.torch.load(data)
            grids = tuple((int(height), int(width)) for height, width in json.loads(metadata["grids"]))
            layers = tuple(tensors[f"layer{number}"] for number in range(len(grids)))
            joint = None
            if "image" in tensors:
                joint = JointFeatures(tuple(tensors[f"joint{number}"] for number in range(len(grids))), tensors["image"])
            return PatchFeatures(layers, grids, joint)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("%s: damaged (%s); the shot is encoded again", path, error)
            return None

    def store(self, shot: str, features: PatchFeatures) -> None:
        """Keep the features of a shot and its mirror image. OSError when the disk refuses.

        Not waited for to reach the disk: what is torn by a power cut fails its hash.
        """
        tensors = {f"layer{number}": layer for number, layer in enumerate(features.layers)}
        if features.joint is not None:
            tensors |= {f"joint{number}": layer for number, layer in enumerate(features.joint.layers)}
            tensors["image"] = features.joint.image
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        # The tensors' order in the file does not depend on the metadata, so the hash may be taken first.
        plain = safetensors.torch.save(tensors)
        blob = memoryview(plain)[8 + int.from_bytes(plain[:8], "little") :]
        metadata = {
            "shot": shot,
            "key": self._key,
            "grids": json.dumps(features.grids),
            "sha256": hashlib.sha256(blob).hexdigest(),
        }
        path = self._path(shot)
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{path.name}"
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))
        temporary.replace(path)

    def keep_only(self, shots: list[str]) -> None:
        """Remove what belongs to no such shot or was made another way."""
        wanted = {self._path(shot).name for shot in shots}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name not in wanted:
                path.unlink(missing_ok=True)
