"""What can be seen of cameras without taking them: for `aprilcam cameras`."""

from dataclasses import dataclass
from typing import Literal

Access = Literal["free", "taken", "unreachable", "unknown"]


@dataclass(frozen=True)
class SeenCamera:
    """A camera that answered. `access`: taken by a program, or unreachable (it answers broadcasts from another subnet)."""

    driver: str
    serial: str
    name: str
    """As a user named it in the camera; empty where it has no name or the driver does not say."""
    model: str
    address: str
    """Its IP address, empty for one that has none."""
    access: Access


@dataclass(frozen=True)
class Feature:
    """One feature of an open camera. `takes`: the range or the entries, empty where that is not known."""

    name: str
    value: str
    takes: str
    writable: bool
