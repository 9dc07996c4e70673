"""A Basler camera's features, and what pylon sees, for the driver and for `aprilcam cameras`."""

import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from config.errors import CameraError
from connectors.cameras.features import Refused, Value
from connectors.cameras.seen import Access, Feature, SeenCamera

with warnings.catch_warnings():
    # pypylon 26.9's SWIG types warn while they are made; where warnings are errors, that is a segmentation fault.
    warnings.simplefilter("ignore")
    from pypylon import genicam as genicam
    from pypylon import pylon as pylon


class PylonNodes:
    """The features of an open InstantCamera, its transport layer's among them."""

    def __init__(self, camera: Any) -> None:
        self._maps = (camera.GetNodeMap(), camera.GetTLNodeMap())

    def has(self, name: str) -> bool:
        """Whether there is such a feature."""
        return any(nodes.GetNode(name).IsValid() for nodes in self._maps)

    def node(self, name: str) -> Any:
        """pylon's own parameter of that name, which must be there."""
        return next(node for nodes in self._maps if (node := nodes.GetNode(name)).IsValid())

    def write(self, name: str, value: Value) -> None:
        """Write it or execute it. Raises Refused."""
        node = self.node(name)
        try:
            if hasattr(node, "Execute"):
                node.Execute()
                return
            whole = isinstance(value, float) and value.is_integer() and isinstance(node, pylon.IntegerParameter)
            node.FromString(str(int(value) if whole else value))
        except genicam.GenericException as error:
            raise Refused(message_of(error)) from None

    def read(self, name: str) -> Value | None:
        """What the camera holds. Raises Refused."""
        node = self.node(name)
        try:
            if hasattr(node, "Execute") or not node.IsReadable():
                return None
            node.ToString(False, True)  # past the cache: what the camera holds, not what was sent
            value: Value = node.GetValue()
        except genicam.GenericException as error:
            raise Refused(message_of(error)) from None
        return value

    def allowed(self, name: str) -> str:
        """The entries or the range. Raises Refused."""
        node = self.node(name)
        try:
            if isinstance(node, pylon.EnumParameter):
                return ", ".join(node.GetSettableValues())
            if isinstance(node, pylon.IntegerParameter | pylon.FloatParameter) and node.IsReadable():
                return f"{node.GetMin()} to {node.GetMax()}"
        except genicam.GenericException as error:
            raise Refused(message_of(error)) from None
        return ""

    def step(self, name: str) -> float:
        """The increment of a floating-point number, 0 for whatever has none."""
        node = self.node(name)
        return float(node.GetInc()) if isinstance(node, pylon.FloatParameter) and node.HasInc() else 0.0


def message_of(error: Exception) -> str:
    """A GenICam message without the place in pylon's source that threw it."""
    return re.sub(r"\s*:? ?\w+Exception thrown.*$", "", str(error), flags=re.DOTALL).strip().rstrip(".")


def seen_by_pylon() -> Iterator[SeenCamera]:
    """Every camera that pylon finds now, its emulator's among them (PYLON_CAMEMU)."""
    factory = pylon.TlFactory.GetInstance()
    for device in factory.EnumerateDevices():
        address = device.GetIpAddress() if device.IsIpAddressAvailable() else ""
        access: Access = "free" if factory.IsDeviceAccessible(device) else _why_not(factory, device)
        name, model = device.GetUserDefinedName(), device.GetModelName()
        yield SeenCamera("pylon", device.GetSerialNumber(), name, model, address, access)


def _why_not(factory: Any, device: Any) -> Access:
    # Basler's discovery crosses subnets: one that cannot even be watched has an address of another.
    with suppress(genicam.GenericException):
        if factory.IsDeviceAccessible(device, pylon.DeviceAccessModeSet(pylon.Monitor)):
            return "taken"
        return "unreachable" if device.IsIpAddressAvailable() else "taken"
    return "unknown"


def features_by_pylon(serial: str) -> list[Feature] | None:
    """Every feature of the camera with this serial number that can be read now, in name order; None when pylon does not
    see it. Raises CameraError when it cannot be opened."""
    factory = pylon.TlFactory.GetInstance()
    device = next((device for device in factory.EnumerateDevices() if device.GetSerialNumber() == serial), None)
    if device is None:
        return None
    try:
        camera = pylon.InstantCamera(factory.CreateDevice(device))
        camera.RegisterConfiguration(  # none: InstantCamera's own would set the triggers
            pylon.ConfigurationEventHandler(), pylon.RegistrationMode_ReplaceAll, pylon.Cleanup_Delete
        )
        camera.Open()
    except genicam.GenericException as error:
        mend = "Close the program that has it (the daemon?), or check its address"
        raise CameraError(f"Camera {serial} cannot be opened: {message_of(error)}. {mend}") from None
    try:
        return sorted(_features(PylonNodes(camera), camera), key=lambda feature: feature.name)
    finally:
        camera.Close()


def _features(nodes: PylonNodes, camera: Any) -> Iterator[Feature]:
    for entry in camera.GetNodeMap().GetNodes():
        name = entry.GetNode().GetName()
        if not entry.GetNode().IsFeature() or not nodes.has(name) or not hasattr(nodes.node(name), "GetValue"):
            continue
        with suppress(Refused, genicam.GenericException):
            value = nodes.read(name)
            if value is not None:
                yield Feature(name, str(value), nodes.allowed(name), bool(nodes.node(name).IsWritable()))
