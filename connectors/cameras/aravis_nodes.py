"""A GigE Vision camera's features through aravis, what aravis sees, and how its library comes into this process."""

import importlib
import importlib.util
import socket
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from config.errors import CameraError
from connectors.cameras.features import Refused, Value
from connectors.cameras.seen import Access, Feature, SeenCamera

PACKAGES = "gir1.2-aravis-0.8 python3-gi"
DEBIAN = Path("/usr/lib/python3/dist-packages")
_MEND = (
    f'driver "aravis" needs Debian\'s GObject introspection: apt-get install {PACKAGES}, and a virtual environment of '
    "Debian's own python3"
)
_GVCP_PORT = 3956
_CONTROL_REGISTER = 0x0A00  # GigE Vision's control channel privilege: 0 while nobody has the camera
_READ_REGISTER = 0x0080


@cache
def aravis_library() -> tuple[Any, Any]:
    """(Aravis, GLib), by GObject introspection. Raises CameraError that says what to install."""
    try:
        if importlib.util.find_spec("gi") is None:
            _load_debians_gi()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyGObject's own, of a Python newer than it
            gi = importlib.import_module("gi")
            gi.require_version("Aravis", "0.8")
            return importlib.import_module("gi.repository.Aravis"), importlib.import_module("gi.repository.GLib")
    except (ImportError, ValueError, AttributeError) as error:
        raise CameraError(f"{_MEND} ({error})") from None


def _load_debians_gi() -> None:
    """Debian's package, by its place: with its folder on sys.path all of Debian's packages could shadow ours, or stand in for
    those that are missing."""
    package = DEBIAN / "gi"
    if not (package / "__init__.py").is_file():
        raise ImportError(f"{package} is not there")
    if not any((package / f"_gi{suffix}").is_file() for suffix in EXTENSION_SUFFIXES):
        made_for = ", ".join(file.name.split(".")[1] for file in package.glob("_gi.*.so")) or "no Python"
        ours = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
        raise ImportError(f"Debian's python3-gi is made for {made_for}, and this is {ours}")
    spec = importlib.util.spec_from_file_location("gi", package / "__init__.py", submodule_search_locations=[str(package)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{package} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gi"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["gi"]
        raise


class AravisNodes:
    """The features of an open aravis device."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self._aravis, self._glib = aravis_library()

    def has(self, name: str) -> bool:
        """Whether there is such a feature, and this camera implements it."""
        node = self._device.get_feature(name)
        if node is None:
            return False
        with suppress(self._glib.Error):
            return bool(node.is_implemented())
        return True

    def write(self, name: str, value: Value) -> None:
        """Write it or execute it. Raises Refused."""
        aravis, device = self._aravis, self._device
        node = device.get_feature(name)
        try:
            if isinstance(node, aravis.GcCommand):
                device.execute_command(name)
            elif isinstance(node, aravis.GcBoolean):
                device.set_boolean_feature_value(name, str(value).lower() in ("true", "1", "1.0"))
            elif isinstance(node, aravis.GcEnumeration | aravis.GcString):
                device.set_string_feature_value(name, str(value))
            elif isinstance(node, aravis.GcInteger):
                device.set_integer_feature_value(name, _whole(value))
            else:
                device.set_float_feature_value(name, float(value))
        except self._glib.Error as error:
            raise Refused(_message_of(error)) from None
        except (ValueError, OverflowError) as error:
            raise Refused(str(error)) from None

    def read(self, name: str) -> Value | None:
        """What the camera holds (aravis keeps no cache unless told to). Raises Refused."""
        aravis, device = self._aravis, self._device
        node = device.get_feature(name)
        try:
            if isinstance(node, aravis.GcCommand | aravis.GcCategory) or not self._readable(node):
                return None
            if isinstance(node, aravis.GcBoolean):
                return bool(device.get_boolean_feature_value(name))
            if isinstance(node, aravis.GcEnumeration | aravis.GcString):
                return str(device.get_string_feature_value(name))
            if isinstance(node, aravis.GcInteger):
                return int(device.get_integer_feature_value(name))
            return float(device.get_float_feature_value(name)) if isinstance(node, aravis.GcFloat) else None
        except self._glib.Error as error:
            raise Refused(_message_of(error)) from None

    def allowed(self, name: str) -> str:
        """The entries or the range. Raises Refused."""
        aravis = self._aravis
        node = self._device.get_feature(name)
        try:
            if isinstance(node, aravis.GcEnumeration):
                return ", ".join(node.dup_available_string_values())
            if isinstance(node, aravis.GcInteger | aravis.GcFloat):
                return f"{node.get_min()} to {node.get_max()}"
        except self._glib.Error as error:
            raise Refused(_message_of(error)) from None
        return ""

    def step(self, name: str) -> float:
        """The increment of a floating-point number, 0 for whatever has none."""
        node = self._device.get_feature(name)
        with suppress(self._glib.Error):
            return float(node.get_inc()) if isinstance(node, self._aravis.GcFloat) else 0.0
        return 0.0

    def writable(self, name: str) -> bool:
        """Whether it may be written now."""
        node = self._device.get_feature(name)
        with suppress(self._glib.Error):
            return bool(not node.is_locked() and node.get_actual_access_mode() != self._aravis.GcAccessMode.RO)
        return False

    def names(self) -> Iterator[str]:
        """Every feature in the tree of categories."""
        waiting = ["Root"]
        for category in waiting:
            node = self._device.get_feature(category)
            for name in node.get_features() if node is not None else ():
                if isinstance(self._device.get_feature(name), self._aravis.GcCategory):
                    waiting += [name] if name not in waiting else []
                else:
                    yield name

    def _readable(self, node: Any) -> bool:
        return bool(node.get_actual_access_mode() != self._aravis.GcAccessMode.WO)


def _whole(value: Value) -> int:
    if isinstance(value, str):
        return int(value, 0)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("it takes whole numbers")
    return int(value)


def _message_of(error: Any) -> str:
    return str(error.message).strip().rstrip(".")


def seen_by_aravis() -> Iterator[SeenCamera]:
    """Every camera that answers aravis now (it listens for a second). Raises CameraError when aravis is not there."""
    aravis, _ = aravis_library()
    aravis.update_device_list()
    for index in range(aravis.get_n_devices()):
        address = aravis.get_device_address(index) or ""
        network = aravis.get_device_protocol(index) == "GigEVision"
        access = _access(address) if network else "unknown"
        serial, model = aravis.get_device_serial_nbr(index) or "", aravis.get_device_model(index) or ""
        yield SeenCamera("aravis", serial, "", f"{aravis.get_device_vendor(index)} {model}", address if network else "", access)


def _access(address: str) -> Access:
    """Ask a camera for its control register: any computer may, and learns whether another one has the camera."""
    ask = struct.pack(">BBHHHI", 0x42, 0x01, _READ_REGISTER, 4, 1, _CONTROL_REGISTER)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(0.3)
        for _ in range(3):
            with suppress(OSError, struct.error):
                channel.sendto(ask, (address, _GVCP_PORT))
                status, _, _, number, value = struct.unpack(">HHHHI", channel.recv(64)[:12])
                if number == 1:
                    return "free" if status == 0 and value == 0 else "taken"
    return "unreachable"


def features_by_aravis(serial: str) -> list[Feature] | None:
    """Every feature of the camera with this serial number that can be read now, in name order; None when aravis does not see
    it. Raises CameraError when it is not there, or does not answer."""
    aravis, glib = aravis_library()
    aravis.update_device_list()
    found = [index for index in range(aravis.get_n_devices()) if aravis.get_device_serial_nbr(index) == serial]
    if not found:
        return None
    try:
        device = aravis.Camera.new(aravis.get_device_id(found[0])).get_device()
    except glib.Error as error:
        raise CameraError(f"Camera {serial} cannot be opened: {_message_of(error)}. Check its address and subnet") from None
    nodes, features = AravisNodes(device), []
    for name in nodes.names():
        with suppress(Refused):
            if nodes.has(name) and (value := nodes.read(name)) is not None:
                features.append(Feature(name, str(value), nodes.allowed(name), nodes.writable(name)))
    return sorted(features, key=lambda feature: feature.name)
