"""Camera features by their standard (SFNC) names, written to whatever names a camera has, and read back.

Older Basler cameras have their own names for what the Standard Features Naming Convention named later. A configuration uses
the standard's; a camera that has only the older one gets that.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from config.errors import CameraError
from config.schema import GenicamCamera

Value = str | int | float | bool

OLDER_NAMES: dict[str, str] = {
    "AcquisitionFrameRate": "AcquisitionFrameRateAbs",
    "BalanceRatio": "BalanceRatioAbs",
    "BlackLevel": "BlackLevelRaw",
    "DeviceTemperature": "TemperatureAbs",
    "ExposureTime": "ExposureTimeAbs",
    "Gain": "GainRaw",
    "HeartbeatTimeout": "GevHeartbeatTimeout",
    "LineDebouncerTime": "LineDebouncerTimeAbs",
    "PtpDataSetLatch": "GevIEEE1588DataSetLatch",
    "PtpEnable": "GevIEEE1588",
    "PtpStatus": "GevIEEE1588StatusLatched",
    "ResultingFrameRate": "ResultingFrameRateAbs",
    "TimerDelay": "TimerDelayAbs",
    "TimerDuration": "TimerDurationAbs",
    "TimestampLatch": "GevTimestampControlLatch",
    "TimestampLatchValue": "GevTimestampValue",
    "TriggerDelay": "TriggerDelayAbs",
}
"""The standard's name, and older Basler cameras' for the same. GainRaw and BlackLevelRaw count in the camera's own steps."""

_ACTIVATIONS = {
    "rising_edge": "RisingEdge",
    "falling_edge": "FallingEdge",
    "any_edge": "AnyEdge",
    "level_high": "LevelHigh",
    "level_low": "LevelLow",
}
_RELATIVE_TOLERANCE = 0.01  # cameras round exposure, gain and rate to their own steps (123.456 us becomes 123 us)
_GAIN_TOLERANCE = 0.1  # dB, one step of the coarser cameras


class Refused(Exception):
    """The device did not take or give a feature; the text says why."""


class Nodes(Protocol):
    """The features of an open device, under the names it knows them by. All but `has` raise Refused."""

    def has(self, name: str) -> bool:
        """Whether the device has this feature at all."""

    def write(self, name: str, value: Value) -> None:
        """Write it; a command is executed, whatever the value."""

    def read(self, name: str) -> Value | None:
        """What the device itself holds now, past every cache; None for what cannot be read (a command)."""

    def allowed(self, name: str) -> str:
        """What it takes, as "1 to 10" or "Mono8, Mono12"; empty where that is not known."""

    def step(self, name: str) -> float:
        """The increment of a number, 0 where there is none."""


@dataclass(frozen=True)
class Setting:
    """One feature to write. `key` is the configuration's, `names` the device's possible ones, the standard's first."""

    key: str
    names: tuple[str, ...]
    value: Value
    tolerance: float = 0.0
    optional: bool = False
    """A device without this feature has nothing to be set."""


def names_of(name: str) -> tuple[str, ...]:
    """The names a feature may have: as given, and the older one."""
    return (name, OLDER_NAMES[name]) if name in OLDER_NAMES else (name,)


def find(nodes: Nodes, name: str) -> str | None:
    """The name by which the device has this feature, None when it has it by none."""
    return next((known for known in names_of(name) if nodes.has(known)), None)


def settings_of(config: GenicamCamera) -> Iterator[Setting]:
    """Every feature that a configuration sets, what bounds others first and `features` last, in their order."""
    for key, name, value in (
        ("heartbeat_ms", "HeartbeatTimeout", config.heartbeat_ms),
        ("pixel_format", "PixelFormat", config.pixel_format),
        ("width", "Width", config.width),
        ("height", "Height", config.height),
    ):
        if value is not None:
            yield Setting(key, names_of(name), value)
    yield from _trigger(config)
    if config.exposure_us is not None:
        yield Setting("exposure_us", ("ExposureAuto",), "Off", optional=True)
        yield Setting("exposure_us", names_of("ExposureTime"), config.exposure_us)
    if config.gain is not None:
        yield Setting("gain", ("GainAuto",), "Off", optional=True)
        yield Setting("gain", names_of("Gain"), config.gain, _GAIN_TOLERANCE)
    if config.packet_size_bytes is not None:
        yield Setting("packet_size_bytes", ("GevSCPSPacketSize",), config.packet_size_bytes)
    if config.inter_packet_delay_ticks is not None:
        yield Setting("inter_packet_delay_ticks", ("GevSCPD",), config.inter_packet_delay_ticks)
    if config.rate_hz is not None:
        yield Setting("rate_hz", ("AcquisitionFrameRateEnable",), True, optional=True)
        yield Setting("rate_hz", names_of("AcquisitionFrameRate"), config.rate_hz)
    if config.ptp is not None:
        yield Setting("ptp", names_of("PtpEnable"), config.ptp)
    for name, given in config.features.items():
        yield Setting(f"features.{name}", names_of(name), given)


def _trigger(config: GenicamCamera) -> Iterator[Setting]:
    yield Setting("trigger", ("TriggerSelector",), "FrameStart", optional=True)
    if config.trigger == "free_run":
        yield Setting("trigger", ("TriggerMode",), "Off")
        return
    line = config.trigger.capitalize()
    yield Setting("trigger", ("TriggerSource",), line)
    if config.trigger_activation is not None:
        yield Setting("trigger_activation", ("TriggerActivation",), _ACTIVATIONS[config.trigger_activation])
    if config.trigger_delay_us is not None:
        yield Setting("trigger_delay_us", names_of("TriggerDelay"), config.trigger_delay_us)
    if config.debounce_us is not None:
        yield Setting("debounce_us", ("LineSelector",), line, optional=True)
        yield Setting("debounce_us", names_of("LineDebouncerTime"), config.debounce_us)
    # Last: a trigger that is armed half set would take what its line does meanwhile.
    yield Setting("trigger", ("TriggerMode",), "On")


def apply(nodes: Nodes, camera: str, settings: Iterator[Setting]) -> dict[str, str]:
    """Write each setting and read it back. Returns the device's names with the values it holds now.

    Raises CameraError, which names the camera, the key, the feature and what it takes.
    """
    held: dict[str, str] = {}
    for setting in settings:
        name = next((name for name in setting.names if nodes.has(name)), None)
        if name is not None:
            if (got := _write(nodes, camera, setting, name)) is not None:
                held[name] = str(got)
        elif not setting.optional:
            what = f"{setting.key} = {setting.value}: the camera has no feature {' or '.join(setting.names)}"
            raise CameraError(f"Camera {camera}: {what}. Leave {setting.key} out")
    return held


def _write(nodes: Nodes, camera: str, setting: Setting, name: str) -> Value | None:
    key, value = setting.key, setting.value
    swapped = ", or is another camera in its place?" if key == "pixel_format" else ""
    mend = f"Correct {key} or leave it out{swapped}"
    takes = ""
    try:
        takes = f"; it takes {allowed}" if (allowed := nodes.allowed(name)) else ""
        nodes.write(name, value)
        got = nodes.read(name)
    except Refused as refused:
        raise CameraError(f"Camera {camera}: {key} = {value}: {name} refused it ({refused}){takes}. {mend}") from None
    if got is not None and not _agrees(value, got, max(setting.tolerance, nodes.step(name))):
        raise CameraError(f"Camera {camera}: {key} = {value}: {name} reads back {got}{takes}. {mend}")
    return got


def _agrees(wanted: Value, got: Value, tolerance: float) -> bool:
    if isinstance(got, bool):
        return got == (str(wanted).lower() in ("true", "1", "1.0"))
    if isinstance(got, str):
        return str(wanted) == got
    try:
        number = float(int(wanted, 0)) if isinstance(wanted, str) and wanted.lower().startswith("0x") else float(wanted)
    except ValueError:
        return False
    if isinstance(got, int):
        return number == got
    return abs(number - got) <= max(tolerance, abs(number) * _RELATIVE_TOLERANCE)
