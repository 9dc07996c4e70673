"""NVIDIA's GPUs as its management library (NVML) tells of them, through the optional package nvidia-ml-py."""

import importlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from connectors.scraped import DEVICE_MEMORY, DEVICE_MEMORY_LIMIT, DEVICE_UTILIZATION, Reading

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GpuState:
    """How one is now; None: it does not tell. device: its index."""

    device: str
    name: str | None
    used_bytes: int | None
    total_bytes: int | None
    temperature_c: int | None


class Gpus:
    """Every GPU that the process may see; none where the package, the driver or a GPU is missing."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        """By index."""
        self._silent: set[tuple[str, str]] = set()
        """What a GPU does not tell (a MIG slice has no utilisation): logged once."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return
        try:
            nvml.nvmlInit()
            self._handles = {str(number): nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())}
        except nvml.NVMLError as error:
            log.info("no GPU metrics: %s", error)
            return
        self._nvml = nvml

    def close(self) -> None:
        """Let NVML go. Safe without it."""
        self._handles = {}
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def readings(self) -> Iterator[Reading]:
        """What each GPU tells."""
        for device, handle in self._handles.items():
            memory = self._ask(device, "nvmlDeviceGetMemoryInfo", handle)
            if memory is not None:
                yield DEVICE_MEMORY.of(memory.used, device)
                yield DEVICE_MEMORY_LIMIT.of(memory.total, device)
            rates = self._ask(device, "nvmlDeviceGetUtilizationRates", handle)
            if rates is not None:
                yield DEVICE_UTILIZATION.of(rates.gpu / 100, device)

    def states(self) -> list[GpuState]:
        """For people. NVML may be asked by several threads at once."""
        found = []
        for device, handle in self._handles.items():
            memory = self._ask(device, "nvmlDeviceGetMemoryInfo", handle)
            used, total = (memory.used, memory.total) if memory is not None else (None, None)
            name = self._ask(device, "nvmlDeviceGetName", handle)
            heat = self._ask(device, "nvmlDeviceGetTemperature", handle, self._nvml.NVML_TEMPERATURE_GPU)
            found.append(GpuState(device, name, used, total, heat))
        return found

    def _ask(self, device: str, question: str, *words: Any) -> Any:
        try:
            return getattr(self._nvml, question)(*words)
        except self._nvml.NVMLError as error:
            if (device, question) not in self._silent:
                self._silent.add((device, question))
                log.info("GPU %s: %s: %s", device, question, error)
            return None
