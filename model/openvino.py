"""A timm backbone on a CPU in OpenVINO: the same weights and the same features as torch, in half the time."""

import hashlib
import io
import json
import logging
import queue
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import ConversionError
from model.features import LocalExtractor, PatchFeatures, TimmExtractor, to_square
from model.files import write_whole
from model.spec import ModelSpec
from model.weights import load_weights

# OpenVINO's Python tools report every import and conversion to their maker, unasked, through this package; where it
# cannot be imported they use an empty stand-in of their own. A line's machine tells nobody anything.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402 - only now
from openvino import properties  # noqa: E402

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Most that any number of a feature (L2-normalised) may differ from torch's. Measured: 4e-7 (EfficientNet-Lite0)."""

CONVERSION_VERSION = 1
"""Raised whenever this code converts the same network otherwise, so that what was cached before is converted again."""


@dataclass(frozen=True)
class _Converted:
    """An encoder in OpenVINO's own format, and what proves that it still is one.

    graph, weights: the two files of the format. probe: 1 x S x S x 3, uint8. expected: torch's features of it.
    """

    graph: bytes
    weights: bytes
    probe: Tensor
    expected: tuple[Tensor, ...]

    def pack(self) -> bytes:
        """As one file, checksums included."""
        tensors = {"probe": self.probe, **{f"layer{number}": layer for number, layer in enumerate(self.expected)}}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("encoder.xml", self.graph)
            archive.writestr("encoder.bin", self.weights)
            archive.writestr("expected.safetensors", safetensors.torch.save(tensors))
        return packed.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> "_Converted":
        """What `pack` made. BadZipFile, KeyError or another error where the bytes are damaged."""
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            tensors = safetensors.torch.load(archive.read("expected.safetensors"))
            expected = tuple(tensors[f"layer{number}"] for number in range(len(tensors) - 1))
            return cls(archive.read("encoder.xml"), archive.read("encoder.bin"), tensors["probe"], expected)


class OpenVinoExtractor(LocalExtractor):
    """A timm backbone with local weights, on the CPU, in float32. Safe to use from several threads, `callers` at a time.

    Features agree with `TimmExtractor` within TOLERANCE, checked with a probe picture whenever an encoder is loaded. So both
    have the same fingerprint: a bank made by one serves the other, and a score moves by less than a threshold has digits.

    threads: CPU threads; None: all cores. callers: how many threads may call at once, each with its share of those.
    cache: folder for the converted encoder, made where it is not there; None: none.
    Its files are named by a hash of everything that shapes them; a damaged one is converted again; all may be deleted.
    Raises ConversionError for a backbone that OpenVINO cannot run or runs otherwise, and what `TimmExtractor` raises.
    """

    def __init__(self, spec: ModelSpec, threads: int | None = None, cache: Path | None = None, *, callers: int = 1) -> None:
        started_s = time.monotonic()
        _, weights_sha256 = load_weights(spec)
        super().__init__(spec, "cpu", weights_sha256, callers)
        self._threads = threads or torch.get_num_threads()
        path = cache / f"encoder-{_key(spec, weights_sha256)}.zip" if cache is not None else None
        cached = path is not None and self._load_cached(path)
        if not cached:
            converted = _convert(spec)
            self._load(converted)
            if path is not None:
                _write(path, converted.pack())
        took_s = time.monotonic() - started_s
        how = "read from the cache" if cached else "converted"
        log.info("model %s: %s for OpenVINO and compiled in %.1f s, %d threads", spec.name, how, took_s, self._threads)

    def extract(self, pictures: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        # B x S x S x 3; the squares are channels last, so this moves nothing.
        squares = to_square(pictures, self._spec.image_size).permute(0, 2, 3, 1).numpy()
        return PatchFeatures(tuple(layer.flatten(1, 2) for layer in self._encode(squares)), self._grids)

    def _encode(self, squares: NDArray[np.uint8]) -> tuple[Tensor, ...]:
        """B x S x S x 3 to B x h x w x C of each layer.

        One picture after the other, as a batch within one pass is no quicker per picture (2 cores, Lite0 at 256 px: 9.2 ms
        alone, 8.7 to 9.2 in batches of 2 to 8). But several pictures, a core each, are: no core waits for another (11.8 ms of
        one core's time, 20 of two). So the many go side by side, and the rest that would leave most cores idle alone.
        """
        layers = tuple(torch.empty((len(squares), *shape)) for shape in self._shapes)
        side = self._side if len(squares) > 1 else ()
        rest = len(squares) % len(side) if side else len(squares)
        if 2 * rest > len(side) > 0:
            rest = 0
        alone = self._alone.get()
        try:
            together = len(squares) - rest
            for first in range(0, together, max(len(side), 1)):
                numbers = range(first, min(first + len(side), together))
                for number, request in zip(numbers, side, strict=False):
                    request.start_async([squares[number, None]], share_inputs=True)
                for number, request in zip(numbers, side, strict=False):
                    request.wait()
                    _copy(request, layers, number)
            for number in range(together, len(squares)):
                alone.infer([squares[number, None]], share_inputs=True, share_outputs=True)
                _copy(alone, layers, number)
        finally:
            self._alone.put(alone)
        return layers

    def _load_cached(self, path: Path) -> bool:
        try:
            self._load(_Converted.unpack(path.read_bytes()))
        except FileNotFoundError:
            return False
        # Whatever the damage hit: the archive, OpenVINO's parser, or the numbers.
        except Exception as error:
            log.warning("%s: damaged, so the encoder is converted again: %s: %s", path, type(error).__name__, error)
            return False
        return True

    def _load(self, converted: _Converted) -> None:
        """Compile and check. ConversionError where the features are not torch's."""
        core = ov.Core()
        model = core.read_model(converted.graph, converted.weights)
        self._shapes = tuple(tuple(output.shape)[1:] for output in model.outputs)
        self._grids = tuple((int(shape[0]), int(shape[1])) for shape in self._shapes)
        alone = _compile(core, model, self._callers, self._threads)
        self._alone: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(self._callers):
            self._alone.put(alone.create_infer_request())
        self._side: tuple[ov.InferRequest, ...] = ()
        # Only the one caller may take all cores for a batch, and who holds the one request uses these alone.
        if self._callers == 1 and self._threads > 1:
            side = _compile(core, model, self._threads, self._threads)
            self._side = tuple(side.create_infer_request() for _ in range(self._threads))
        # All requests, which warms each of them up as well: every call gets the next one.
        probes = np.repeat(converted.probe.numpy(), len(self._side) + 1, axis=0)
        for _ in range(self._callers):
            for got, want in zip(self._encode(probes), converted.expected, strict=True):
                difference = float((got - want).abs().max())
                if not difference <= TOLERANCE:
                    raise ConversionError(
                        f"model {self._spec.name}: OpenVINO {ov.__version__}: expected torch's features within {TOLERANCE}, got "
                        f"a difference of {difference:.1e}. Use runtime torch"
                    )


def _key(spec: ModelSpec, weights_sha256: str) -> str:
    """Hash of everything that shapes a converted encoder, 16 hex digits."""
    made_of = {
        "fingerprint": spec.fingerprint(weights_sha256),
        "conversion": CONVERSION_VERSION,
        "openvino": ov.__version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def _convert(spec: ModelSpec) -> _Converted:
    encoder = TimmExtractor(spec).encoder
    side = spec.image_size
    probe = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected = tuple(layer.contiguous() for layer in encoder(probe))
            # Not torch.jit.trace, OpenVINO's other way in: torch warns that it will go.
            model = ov.convert_model(torch.export.export(encoder, (probe,)))
            # A fixed shape: 9.2 ms against 11.7 with a free batch.
            model.reshape([1, side, side, 3])
            with tempfile.TemporaryDirectory() as name:
                graph, weights = Path(name) / "encoder.xml", Path(name) / "encoder.bin"
                ov.serialize(model, graph, weights)
                return _Converted(graph.read_bytes(), weights.read_bytes(), probe, expected)
    # Two compilers, each with errors of its own; for all of them the way out is torch.
    except Exception as error:
        told = str(error).strip().splitlines()
        raise ConversionError(
            f"model {spec.name}: expected a backbone that OpenVINO {ov.__version__} can run, got {spec.backbone}: "
            f"{type(error).__name__}: {told[0] if told else ''}. Use runtime torch"
        ) from error


def _compile(core: ov.Core, model: ov.Model, streams: int, threads: int) -> ov.CompiledModel:
    return core.compile_model(
        model,
        "CPU",
        {
            # Said, as OpenVINO takes bf16 by itself where the CPU has it.
            properties.hint.inference_precision: ov.Type.f32,
            properties.num_streams: streams,
            properties.inference_num_threads: threads,
            # Pinned threads wait for their core while a camera process has it, and another core is free.
            properties.hint.enable_cpu_pinning: False,
        },
    )


def _copy(request: ov.InferRequest, layers: Sequence[Tensor], number: int) -> None:
    for index, layer in enumerate(layers):
        layer[number].copy_(torch.from_numpy(request.get_output_tensor(index).data)[0])


def _write(path: Path, data: bytes) -> None:
    """A cache that cannot be written costs time at the next start and nothing else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        log.warning("%s: the converted encoder cannot be kept: %s", path, error)
