"""What is read at each scrape, so that nothing has to be kept up to date on the hot path: declared here, read by who knows it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Reading = tuple["Scraped", tuple[str, ...], float]
"""(what, label values, value)."""


@dataclass(frozen=True)
class Scraped:
    """A gauge, or a counter that somebody else counts. name: a counter's without its `_total`."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    counter: bool = False

    def of(self, value: float, *labels: str) -> Reading:
        """A reading of one series."""
        return self, labels, float(value)


STATION, RECIPE, DEVICE = ("station",), ("recipe",), ("device",)

QUEUE_DEPTH = Scraped("aprilcam_queue_depth", "Frames waiting for the inspector", STATION)
STATION_TAUGHT = Scraped("aprilcam_station_taught", "1 while something judges the station's recipe: a bank or words", STATION)
THRESHOLD = Scraped("aprilcam_threshold", "Score above which a frame fails", STATION)
THRESHOLD_STALE = Scraped(
    "aprilcam_threshold_stale",
    "1 while the threshold in force was set against another calibration than the one that judges",
    STATION,
)
BANK_INFO = Scraped(
    "aprilcam_bank_info",
    "Always 1: which recipe, bank (empty where words alone judge) and mode judge the station's frames. One series a station",
    ("station", "recipe", "bank", "mode"),
)
BANK_PATCHES = Scraped("aprilcam_bank_patches", "Patch features in the bank", STATION)
CAMERA_CONNECTED = Scraped("aprilcam_camera_connected", "1 while the camera delivers or waits for triggers", STATION)
FRAME_AGE = Scraped("aprilcam_frame_age_seconds", "Time since the newest frame or fault came; absent before the first", STATION)
CAMERA_MEMORY = Scraped("aprilcam_camera_resident_memory_bytes", "Resident memory of the camera's own process", STATION)
INCOMPLETE = Scraped("aprilcam_incomplete_frames", "Frames of which packets were lost on the way", STATION, counter=True)
RESENT = Scraped("aprilcam_camera_packets_resent", "Packets that the camera was asked to send again", STATION, counter=True)
FAILED_PACKETS = Scraped("aprilcam_camera_packets_failed", "Packets that never came, also not again", STATION, counter=True)
FAILED_BUFFERS = Scraped("aprilcam_camera_buffers_failed", "Buffers that the driver could not fill", STATION, counter=True)
UNDERRUNS = Scraped("aprilcam_camera_buffer_underruns", "Frames for which the driver had no buffer free", STATION, counter=True)
COUNTED_BY_CAMERAS = {
    "faults_incomplete": INCOMPLETE,
    "packets_resent": RESENT,
    "packets_failed": FAILED_PACKETS,
    "buffers_failed": FAILED_BUFFERS,
    "buffer_underruns": UNDERRUNS,
}
"""By the name that a camera process's heartbeat uses."""

SCORE_DRIFT = Scraped(
    "aprilcam_score_drift_psi",
    "Population stability index of the newest passing scores against the first ones of the bank; absent until there are enough",
    RECIPE,
)
EXPOSURE_DRIFT = Scraped(
    "aprilcam_exposure_drift",
    "How far recent frames are from the recipe's shots, in the shots' standard deviations; absent until there are enough",
    ("station", "measure"),
)

OUTBOX_DEPTH = Scraped("aprilcam_outbox_depth", "Messages the broker has not acknowledged")
OUTBOX_BYTES = Scraped("aprilcam_outbox_bytes", "Topics and payloads of the messages that the broker has not acknowledged")
OUTBOX_AGE = Scraped(
    "aprilcam_outbox_oldest_age_seconds", "Age of the oldest message that the broker has not acknowledged; 0 without any"
)
LEDGER_FAILING = Scraped("aprilcam_ledger_failing", "1 while the ledger's disk takes no commit")
ARCHIVE_BYTES = Scraped("aprilcam_archive_bytes", "Bytes of the archived files")
ARCHIVE_FILES = Scraped("aprilcam_archive_files", "Archived files")
ARCHIVE_FAILING = Scraped("aprilcam_archive_failing", "1 while the disk or the quota takes no frame into the archive")
CERTIFICATE_EXPIRY = Scraped(
    "aprilcam_mqtt_certificate_expiry_timestamp_seconds",
    "When the client certificate that lies in its file expires, since 1970; absent without one",
)

DEVICE_MEMORY = Scraped(
    "aprilcam_device_memory_bytes", "Memory of the GPU that is in use, by whatever process; absent without NVML", DEVICE
)
DEVICE_MEMORY_LIMIT = Scraped("aprilcam_device_memory_limit_bytes", "Memory that the GPU has; absent without NVML", DEVICE)
DEVICE_UTILIZATION = Scraped(
    "aprilcam_device_utilization_ratio",
    "Share of the last second or less in which the GPU computed; absent where NVML does not tell",
    DEVICE,
)

SCRAPED = tuple(item for item in list(globals().values()) if isinstance(item, Scraped))
"""All of them."""


class ScrapedCollector(Collector):
    """Asks for the readings at the scrape."""

    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Their names, so that the registry refuses one that is taken."""
        return _families().values()

    def collect(self) -> Iterator[Metric]:
        """In the order of their declaration."""
        families = _families()
        for what, labels, value in self._read():
            families[what].add_metric(labels, value)
        yield from families.values()


def _families() -> dict[Scraped, GaugeMetricFamily | CounterMetricFamily]:
    kinds = {True: CounterMetricFamily, False: GaugeMetricFamily}
    return {own: kinds[own.counter](own.name, own.text, labels=own.labels) for own in SCRAPED}
