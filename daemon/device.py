"""The model on its device: loaded, and how many frames it judges at once."""

import logging
import os
from collections.abc import Callable

import numpy as np
import torch

from config.schema import Config
from daemon.batching import Batching, choose, measure
from model.detector import Detector
from model.features import create_extractor
from model.spec import ModelSpec

log = logging.getLogger(__name__)

MOST_LANES = 4
"""Pictures that are judged at the same time on a CPU; with more cores than that, several work on each."""
Progress = Callable[[str, int, int], None]
"""(what, done, of how much)."""


def load_detector(config: Config, spec: ModelSpec, progress: Progress) -> Detector:
    """On the thread that is to judge. Raises ModelError."""
    progress(f"loading model {spec.name}", 0, 1)
    inference, cache = config.inference, config.store.path / "cache"
    threads = inference.threads or os.cpu_count() or 1
    # A picture on two cores takes nearly as long as on one, so small machines judge as many as they have cores.
    callers = min(MOST_LANES, threads)
    extractor = create_extractor(spec, inference.device, threads, cache, inference.runtime, callers)
    detector = Detector(extractor, cache)
    progress(f"loading model {spec.name}", 1, 1)
    return detector


def choose_batching(config: Config, detector: Detector, progress: Progress) -> Batching:
    """As configured, else by measuring the encoder; what is chosen is no larger than the frames that may wait."""
    most, wait_ms = config.inference.max_batch, config.inference.max_wait_ms
    if detector.extractor.callers > 1:
        most, wait_ms = most or 1, wait_ms or 0.0  # each lane judges one after the other, a batch saves nothing
    if most is None or wait_ms is None:
        progress("measuring batches", 0, 1)
        blank = np.zeros((256, 256), np.uint8)

        def encode(size: int) -> None:
            try:
                detector.encode([blank] * size)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                raise MemoryError from None

        chosen = choose(measure(encode))
        progress("measuring batches", 1, 1)
        most = most or min(chosen.max_batch, sum(station.queue_frames for station in config.stations))
        wait_ms = chosen.max_wait_s * 1e3 if wait_ms is None and most > 1 else wait_ms or 0.0
        log.info("batches of up to %d frames, waiting %.1f ms for others", most, wait_ms)
    return Batching(most, wait_ms / 1e3)
