"""The configuration file (`aprilcam.toml`) as frozen models, and its one loader, `load_config`.

Every key is documented in `aprilcam.example.toml`; a test keeps the two equal. Paths in a file are relative to that file.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from config.errors import ConfigError, Problem

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A name that is safe as a topic level, a folder and a metric label."""
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400)]


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value:
        return value
    return (Path((info.context or {}).get("base", "")) / value).resolve()


ConfigPath = Annotated[Path, BeforeValidator(_resolve)]
"""A path; relative ones start at the folder of the configuration file."""

CREDENTIALS = Path("/run/credentials/aprilcam.service")
"""Where systemd puts the unit's credentials; the daemon itself is told by $CREDENTIALS_DIRECTORY."""


def _resolve_secret(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value.startswith("credential:"):
        return _resolve(value, info)
    name = value.removeprefix("credential:")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ValueError(f"{name!r} cannot be the name of a credential: letters, digits, '_', '-' and '.', at most 64")
    return Path(os.environ.get("CREDENTIALS_DIRECTORY") or CREDENTIALS) / name


SecretPath = Annotated[Path, BeforeValidator(_resolve_secret)]
"""A path, or "credential:NAME": a systemd credential of the unit (LoadCredential=, systemd.exec(5))."""


class Section(BaseModel):
    """Base of every table: unknown keys are errors, values are not coerced across types, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StoreConfig(Section):
    """Where the daemon keeps its state."""

    path: ConfigPath = Path("/var/lib/aprilcam")
    results_days: float = Field(default=30.0, gt=0, le=36_500)


class TlsConfig(Section):
    """How the broker proves who it is, and we to it. Always TLS 1.2 or newer."""

    ca_file: ConfigPath | None = None
    certificate_file: ConfigPath | None = None
    key_file: SecretPath | None = None
    key_password_file: SecretPath | None = None
    check_hostname: bool = True

    @property
    def files(self) -> dict[str, Path]:
        """Those that are configured, by key."""
        keys = ("ca_file", "certificate_file", "key_file", "key_password_file")
        return {key: file for key in keys if (file := getattr(self, key)) is not None}


class MqttConfig(Section):
    """The broker and this daemon's place in its topic tree."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=1883, ge=1, le=65_535)
    protocol: Literal["5", "3.1.1"] = "5"
    prefix: str = Field(default="aprilcam", pattern=r"^[^/#+$\x00][^#+\x00]*[^/#+\x00]$|^[^/#+$\x00]$", max_length=200)
    client_id: str = Field(default="aprilcam", min_length=1, max_length=64)
    username: str | None = None
    password_file: SecretPath | None = None
    keepalive_s: int = Field(default=15, ge=1, le=3_600)
    in_flight: int = Field(default=64, ge=1, le=1_000)
    max_packet_bytes: int | None = Field(default=None, ge=1_000)
    mask_expiry_s: int = Field(default=3_600, ge=1, le=4_294_967_295)
    outbox_max_bytes: int = Field(default=5_000_000_000, ge=1_000_000)
    outbox_max_age_h: float = Field(default=720.0, gt=0, le=876_000)
    commands_per_s: float = Field(default=50.0, gt=0, le=10_000)
    triggers_per_s: float = Field(default=1_000.0, gt=0, le=100_000)
    tls: TlsConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _tls_port(cls, document: Any) -> Any:
        if isinstance(document, dict) and document.get("tls") is not None:
            return {"port": 8883, **document}
        return document


SparkplugId = Annotated[str, Field(pattern=r"^[^/#+$\x00][^/#+\x00]{0,99}$")]


class SparkplugConfig(Section):
    """The daemon as a Sparkplug B edge node, on the broker of [mqtt]."""

    group_id: SparkplugId
    edge_node_id: SparkplugId
    primary_host: SparkplugId | None = None
    client_id: str | None = Field(default=None, min_length=1, max_length=64)

    @field_validator("group_id")
    @classmethod
    def _not_state(cls, value: str) -> str:
        if value == "STATE":
            raise ValueError("'STATE' is where host applications tell their state")
        return value


class HttpConfig(Section):
    """The one HTTP port: metrics, health and commands."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=9464, ge=0, le=65_535)
    token_file: SecretPath | None = None
    users_file: SecretPath | None = None


class InferenceConfig(Section):
    """What runs the model, and how frames are gathered into batches."""

    preset: str = "efficientnet-lite0"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    runtime: Literal["auto", "torch", "openvino"] = "auto"
    max_batch: int | None = Field(default=None, ge=1, le=256)
    max_wait_ms: float | None = Field(default=None, ge=0, le=1_000)
    threads: int | None = Field(default=None, ge=1, le=256)
    bank_rows: int | None = Field(default=None, ge=1, le=1_000_000)


class ArchiveConfig(Section):
    """Which frames are kept as pictures, how long, and how much of the disk they may take."""

    enabled: bool = True
    pass_share: float = Field(default=0.01, ge=0, le=1)
    maps: bool = True
    max_age_days: float = Field(default=30.0, gt=0, le=36_500)
    max_bytes: int = Field(default=10_000_000_000, ge=1_000_000)
    min_free_bytes: int = Field(default=2_000_000_000, ge=0)


class CameraSection(Section):
    """What every driver has."""

    name: Name
    silent_after_s: float = Field(default=10.0, ge=0.75, le=86_400)
    retry_s: PositiveSeconds = 5.0


class GenicamCamera(CameraSection):
    """What the drivers of real cameras share. Each setting is written under the name that the camera knows, and read back."""

    serial: str | None = None
    ip: str | None = None
    trigger: Literal["free_run", "software", "line0", "line1", "line2", "line3", "line4"] = "free_run"
    trigger_activation: Literal["rising_edge", "falling_edge", "any_edge", "level_high", "level_low"] | None = None
    trigger_delay_us: float | None = Field(default=None, ge=0, le=60_000_000)
    debounce_us: float | None = Field(default=None, ge=0, le=1_000_000)
    rate_hz: float | None = Field(default=None, gt=0, le=10_000)
    pixel_format: str | None = None
    exposure_us: float | None = Field(default=None, gt=0, le=60_000_000)
    gain: float | None = Field(default=None, ge=0)
    width: int | None = Field(default=None, ge=1, le=65_535)
    height: int | None = Field(default=None, ge=1, le=65_535)
    packet_size_bytes: int | None = Field(default=None, ge=220, le=16_404)
    inter_packet_delay_ticks: int | None = Field(default=None, ge=0)
    heartbeat_ms: int | None = Field(default=None, ge=500, le=60_000)
    ptp: bool | None = None
    features: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @field_validator("ip")
    @classmethod
    def _ip(cls, value: str | None) -> str | None:
        if value is not None:
            ipaddress.ip_address(value)
        return value

    @model_validator(mode="after")
    def _trigger_is_used(self) -> "GenicamCamera":
        for key in ("trigger_activation", "debounce_us"):
            if getattr(self, key) is not None and not self.trigger.startswith("line"):
                raise ValueError(f'{key} belongs to an input, as trigger = "line1", and trigger is "{self.trigger}"')
        if self.trigger_delay_us is not None and self.trigger == "free_run":
            raise ValueError("trigger_delay_us needs a trigger, and the camera runs freely")
        return self


class PylonCamera(GenicamCamera):
    """A Basler camera, or pylon's emulator playing a folder (`emulate`)."""

    driver: Literal["pylon"]
    user_name: str | None = None
    emulate: ConfigPath | None = None

    @model_validator(mode="after")
    def _one_selector(self) -> "PylonCamera":
        if sum(value is not None for value in (self.serial, self.user_name, self.ip, self.emulate)) != 1:
            raise ValueError("exactly one of serial, user_name, ip and emulate says which camera is meant")
        return self


class AravisCamera(GenicamCamera):
    """A GigE Vision camera of another maker, through aravis."""

    driver: Literal["aravis"]

    @model_validator(mode="after")
    def _one_selector(self) -> "AravisCamera":
        if (self.serial is None) == (self.ip is None):
            raise ValueError("exactly one of serial and ip says which camera is meant")
        return self


class FolderCamera(CameraSection):
    """A folder of pictures played as if it were a camera."""

    driver: Literal["folder"]
    path: ConfigPath
    rate_hz: float = Field(default=1.0, gt=0, le=10_000)
    loop: bool = True


CameraConfig = Annotated[PylonCamera | AravisCamera | FolderCamera, Field(discriminator="driver")]
DRIVERS: dict[str, type[CameraSection]] = {"pylon": PylonCamera, "aravis": AravisCamera, "folder": FolderCamera}


class Region(Section):
    """A region of interest in pixels of the frame, the origin at its upper left."""

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(ge=16)
    height: int = Field(ge=16)


class RecipeConfig(Section):
    """What is inspected: the object, the region of interest, the reference shots and the threshold."""

    name: Name
    object: str = Field(min_length=1, max_length=100)
    shots: ConfigPath | None = None
    drop: ConfigPath | None = None
    mode: Literal["zero_shot", "few_shot", "both"] | None = None
    region: Region | None = None
    threshold: float | None = Field(default=None, gt=0, le=100)


class StationConfig(Section):
    """One camera view where parts are inspected."""

    name: Name
    camera: str
    recipe: str
    frames: Literal["every", "newest"] | None = None
    queue_frames: int = Field(default=8, ge=1, le=1_000)
    deadline_ms: float | None = Field(default=None, ge=1, le=60_000)
    frames_per_part: int = Field(default=1, ge=1, le=32)
    frame_timeout_ms: float = Field(default=2_000.0, ge=10, le=30_000)
    part_before_ms: float = Field(default=1_000.0, ge=0, le=30_000)
    part_after_ms: float = Field(default=0.0, ge=0, le=10_000)
    mask: Literal["topic", "inline", "polygon", "rle", "none"] = "topic"
    overlay: bool = False
    overlay_max_hz: float = Field(default=1.0, ge=0.01, le=25)
    overlay_width: int = Field(default=640, ge=320, le=4_096)


class Config(Section):
    """A whole `aprilcam.toml`."""

    store: StoreConfig = StoreConfig()
    mqtt: MqttConfig = MqttConfig()
    sparkplug: SparkplugConfig | None = None
    http: HttpConfig = HttpConfig()
    inference: InferenceConfig = InferenceConfig()
    archive: ArchiveConfig = ArchiveConfig()
    cameras: tuple[CameraConfig, ...]
    recipes: tuple[RecipeConfig, ...]
    stations: tuple[StationConfig, ...]

    @field_validator("cameras", "recipes", "stations", mode="before")
    @classmethod
    def _arrays(cls, value: Any) -> Any:
        # TOML has arrays only; strict mode wants the tuple that a frozen model holds.
        return tuple(value) if isinstance(value, list) else value

    def camera(self, name: str) -> CameraConfig:
        """The camera of that name (KeyError if none; a loaded configuration has it)."""
        return {camera.name: camera for camera in self.cameras}[name]

    def recipe(self, name: str) -> RecipeConfig:
        """The recipe of that name (KeyError if none; a loaded configuration has it)."""
        return {recipe.name: recipe for recipe in self.recipes}[name]

    def software_triggered(self, station: StationConfig) -> bool:
        """Whether a command triggers its camera."""
        camera = self.camera(station.camera)
        return isinstance(camera, GenicamCamera) and camera.trigger == "software"

    def takes_every_frame(self, station: StationConfig) -> bool:
        """Whether each frame gets a result: as configured, else yes for triggered cameras and no for free-running ones."""
        if station.frames is not None:
            return station.frames == "every"
        camera = self.camera(station.camera)
        return isinstance(camera, GenicamCamera) and camera.trigger != "free_run"


def load_config(path: Path) -> Config:
    """Read and validate a configuration file.

    Raises ConfigError with every problem found: unreadable file, TOML syntax, unknown keys, wrong types, names used twice
    or not defined, files that are not there.
    """
    path = path.resolve()
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(path, [Problem("file", reason.lower(), "Name a file that can be read with --config")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(path, [Problem("file", f"not UTF-8 text ({error.reason})", "Save it as UTF-8")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, [Problem("file", f"not TOML: {error}", "Mend the line that is named")]) from None
    try:
        config = Config.model_validate(document, context={"base": path.parent})
    except ValidationError as error:
        # A value that fits no member of a union is told by each of them.
        raise ConfigError(path, list(dict.fromkeys(_problem(dict(item)) for item in error.errors()))) from None
    if problems := list(_cross_check(config)):
        raise ConfigError(path, problems)
    return config


def _problem(item: dict[str, Any]) -> Problem:
    location = [str(part) for part in item["loc"] if part not in DRIVERS]
    key = ".".join(location) or "file"
    match item["type"]:
        case "extra_forbidden":
            known = _known_keys(item["loc"])
            close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
            mend = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(sorted(known))}"
            return Problem(key, "unknown key", mend)
        case "missing":
            return Problem(key, "missing", "Add it; config/aprilcam.example.toml shows how")
        case "union_tag_invalid" | "union_tag_not_found":
            return Problem(f"{key}.driver", "missing or not a known driver", 'Use driver = "pylon", "aravis" or "folder"')
        case "value_error":
            return Problem(key, str(item["msg"]).removeprefix("Value error, "), "Correct it")
        case "string_pattern_mismatch" if location[-1] == "name":
            reason = f"{item['input']!r} cannot be a name"
            return Problem(key, reason, "Use letters, digits, '_', '-' and '.', at most 64, a letter or digit first")
    if "features" in location:
        reason = f"a feature takes a text, a number or true/false, not {item['input']!r}"
        return Problem(".".join(location[: location.index("features") + 2]), reason, "Correct it or leave it out")
    reason = str(item["msg"])
    return Problem(key, reason[:1].lower() + reason[1:], f"Got {item['input']!r} of type {type(item['input']).__name__}")


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Config
    for part in location[:-1]:
        if part in DRIVERS:
            model = DRIVERS[part]
        elif isinstance(part, str):
            nested = {
                "store": StoreConfig, "mqtt": MqttConfig, "http": HttpConfig, "inference": InferenceConfig,
                "archive": ArchiveConfig, "recipes": RecipeConfig, "stations": StationConfig, "region": Region, "tls": TlsConfig,
                "sparkplug": SparkplugConfig,
            }  # fmt: skip
            model = nested.get(part, model)
    return list(model.model_fields)


def _repeated(names: Iterable[str], table: str, what: str) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            reason = f"{what} {name!r} is already the name of {table}.{seen[name]}"
            yield Problem(f"{table}.{index}.name", reason, "Give each its own name")
        seen.setdefault(name, index)


def _cross_check(config: Config) -> Iterator[Problem]:
    for table in ("cameras", "recipes", "stations"):
        if not getattr(config, table):
            yield Problem(table, "empty", f"Add a [[{table}]] table; config/aprilcam.example.toml shows one")
    yield from _repeated((camera.name for camera in config.cameras), "cameras", "camera")
    yield from _repeated((recipe.name for recipe in config.recipes), "recipes", "recipe")
    yield from _repeated((station.name for station in config.stations), "stations", "station")
    cameras = {camera.name for camera in config.cameras}
    recipes = {recipe.name for recipe in config.recipes}
    users: dict[str, str] = {}
    for index, station in enumerate(config.stations):
        if station.camera not in cameras:
            reason = f"no camera is named {station.camera!r}"
            yield Problem(f"stations.{index}.camera", reason, f"Known: {', '.join(sorted(cameras))}")
        elif station.camera in users:
            reason = f"camera {station.camera!r} already serves station {users[station.camera]!r}"
            yield Problem(f"stations.{index}.camera", reason, "Give each station a camera of its own")
        users.setdefault(station.camera, station.name)
        if station.camera in cameras and not config.takes_every_frame(station):
            mend = 'Set frames = "every", or leave it out'
            if station.frames_per_part > 1:
                yield Problem(f"stations.{index}.frames_per_part", "this station takes only the newest frames", mend)
            if config.software_triggered(station):
                yield Problem(f"stations.{index}.frames", "a triggered frame may not be skipped", mend)
        if station.recipe not in recipes:
            reason = f"no recipe is named {station.recipe!r}"
            yield Problem(f"stations.{index}.recipe", reason, f"Known: {', '.join(sorted(recipes))}")
    yield from _check_secrets(config)
    if config.sparkplug is not None and config.sparkplug.client_id == config.mqtt.client_id:
        reason = "the connection of [mqtt] has this client id, and a broker drops one of two that share it"
        yield Problem("sparkplug.client_id", reason, "Choose another, or leave it out")
    for index, recipe in enumerate(config.recipes):
        if recipe.shots is not None and not recipe.shots.is_dir():
            mend = "Make it and put pictures of good parts into it"
            yield Problem(f"recipes.{index}.shots", f"{recipe.shots} is not a folder", mend)
    yield from _check_drops(config)


def _check_secrets(config: Config) -> Iterator[Problem]:
    mqtt, tls = config.mqtt, config.mqtt.tls
    if mqtt.password_file is not None and mqtt.username is None:
        yield Problem("mqtt.password_file", "without a username it is not used", "Add mqtt.username, or leave it out")
    if tls is not None and tls.key_file is not None and tls.certificate_file is None:
        yield Problem("mqtt.tls.key_file", "without a certificate it is not used", "Add mqtt.tls.certificate_file")
    if tls is not None and tls.key_password_file is not None and tls.certificate_file is None:
        yield Problem("mqtt.tls.key_password_file", "without a key it is not used", "Leave it out")
    if mqtt.password_file is not None and _is_missing(mqtt.password_file):
        yield Problem("mqtt.password_file", f"{mqtt.password_file} is not a file", "Write the password into it, mode 0600")
    for key, file in (tls.files if tls is not None else {}).items():
        if _is_missing(file):
            yield Problem(f"mqtt.tls.{key}", f"{file} is not a file", "Correct the path, or put the file there")
    if (token := config.http.token_file) is not None and _is_missing(token):
        yield Problem("http.token_file", f"{token} is not a file", "Write a long random token into it, mode 0640")
    if (users := config.http.users_file) is not None and _is_missing(users):
        yield Problem("http.users_file", f"{users} is not a file", "Write what `aprilcam user` prints into it, mode 0640")


def _is_missing(file: Path) -> bool:
    """What only the daemon may see is not missing, and credentials are there only while it runs."""
    if file.parent == CREDENTIALS:
        return False
    try:
        return not file.is_file()
    except PermissionError:
        return False


def _check_drops(config: Config) -> Iterator[Problem]:
    taken = {recipe.shots: f"recipe {recipe.name!r} reads its shots" for recipe in config.recipes if recipe.shots is not None}
    for index, recipe in enumerate(config.recipes):
        if recipe.drop is None:
            continue
        key = f"recipes.{index}.drop"
        if not recipe.drop.is_dir():
            yield Problem(key, f"{recipe.drop} is not a folder", "Make it; the daemon needs write access, it moves files there")
        if recipe.drop in taken:
            yield Problem(key, f"{recipe.drop} is where {taken[recipe.drop]}", "Give it a folder of its own")
        taken[recipe.drop] = f"recipe {recipe.name!r} takes pictures in"
