"""Whether the configured cameras are seen, and what packets they send. Nothing is opened that a daemon may want."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from config.errors import CameraError
from config.schema import AravisCamera, CameraConfig, FolderCamera, GenicamCamera, PylonCamera
from connectors.cameras.pictures import list_pictures
from connectors.cameras.seen import SeenCamera
from daemon.doctor.child import ChildError, ask
from daemon.doctor.finding import Finding, Situation
from daemon.doctor.network import interface_to, mtu_of

JUMBO = 8_000
"""Packets of so many bytes are large ones."""
_MEND_UNSEEN = "Check power, cable, that its address is in a subnet of this computer, and the configuration"


@dataclass(frozen=True)
class _Sight:
    """What an enumeration gave; `trouble` says why it gave nothing."""

    cameras: tuple[SeenCamera, ...] = ()
    notes: tuple[str, ...] = field(default=())
    trouble: str | None = None


class Cameras:
    """What can be seen, looked at once. Used by one check after the other."""

    @cached_property
    def _sight(self) -> _Sight:
        try:
            answer = ask("-m", "daemon.cli", "cameras", "--json", limit_s=40)
        except ChildError as error:
            return _Sight(trouble=str(error))
        return _Sight(tuple(SeenCamera(**row) for row in answer["cameras"]), tuple(answer["notes"]))

    def addresses(self, situation: Situation) -> dict[str, str]:
        """Name of a camera by its address: those that are configured, else all that are seen."""
        if situation.config is None:
            return {seen.address: seen.serial for seen in self._sight.cameras if seen.address}
        found = {}
        for camera in situation.config.cameras:
            seen = self._seen(camera)
            address = seen.address if seen is not None else getattr(camera, "ip", None)
            if address:
                found[address] = camera.name
        return found

    def look_at_cameras(self, situation: Situation) -> Iterator[Finding]:
        """Each camera of the configuration; without one, each that is seen."""
        sight = self._sight
        if sight.trouble is not None:
            yield Finding("fail", f"cameras cannot be looked for: {sight.trouble}", "Run: aprilcam cameras")
        elif situation.config is None:
            for seen in sight.cameras:
                yield Finding("ok", f"{seen.driver} sees {seen.serial} {seen.model} {seen.address} ({seen.access})")
            if not sight.cameras:
                yield Finding("ok", "no camera is seen, none is configured")
        else:
            for camera in situation.config.cameras:
                yield self._judge(camera, situation)

    def _seen(self, camera: CameraConfig) -> SeenCamera | None:
        if not isinstance(camera, PylonCamera | AravisCamera):
            return None
        name = camera.user_name if isinstance(camera, PylonCamera) else None
        for seen in self._sight.cameras:
            meant = (camera.serial, seen.serial), (camera.ip, seen.address), (name, seen.name)
            if seen.driver == camera.driver and any(wanted is not None and wanted == has for wanted, has in meant):
                return seen
        return None

    def _judge(self, camera: CameraConfig, situation: Situation) -> Finding:
        folder = camera.path if isinstance(camera, FolderCamera) else camera.emulate if isinstance(camera, PylonCamera) else None
        if folder is not None:
            return _judge_folder(camera.name, folder)
        seen = self._seen(camera)
        if seen is None:
            others = ", ".join(other.serial for other in self._sight.cameras if other.driver == camera.driver) or "none"
            notes = [note for note in self._sight.notes if camera.driver in note]
            found = f"{camera.name}: {_described(camera)} is not seen. {camera.driver} sees: {others}"
            return Finding("fail", ". ".join([found, *notes]), _MEND_UNSEEN)
        found = f"{camera.name}: {seen.driver} sees {seen.serial} {seen.model} {seen.address} ({seen.access})"
        if seen.access == "unreachable":
            return Finding("fail", found, "Give it an address of a subnet of this computer, as its network card has one")
        if seen.access == "taken" and not situation.daemon_runs:
            return Finding("warn", found, "Close the program that has it: a viewer, or a daemon with another configuration")
        return Finding("ok", found)

    def look_at_packet_size(self, situation: Situation) -> Iterator[Finding]:
        """GevSCPSPacketSize of each GigE camera that nobody uses: reading it opens the camera for a moment."""
        if self._sight.trouble is not None:
            yield Finding("skipped", "cameras cannot be looked for")
            return
        if situation.daemon_runs:
            yield Finding("skipped", "the daemon runs and has the cameras; stop it to have this checked")
            return
        wanted = self.addresses(situation)
        cameras = [seen for seen in self._sight.cameras if seen.address in wanted]
        if situation.config is not None:
            drivers = {(camera.name, camera.driver) for camera in situation.config.cameras}
            cameras = [seen for seen in cameras if (wanted[seen.address], seen.driver) in drivers]
        for seen in cameras:
            if seen.access == "free":
                yield self._packet_size(seen, wanted[seen.address], situation)
            else:
                yield Finding("skipped", f"{wanted[seen.address]}: it is {seen.access}")
        if not cameras:
            yield Finding("skipped", "no GigE camera is seen")

    def _packet_size(self, seen: SeenCamera, name: str, situation: Situation) -> Finding:
        try:
            rows = ask("-m", "daemon.cli", "cameras", "--features", seen.serial, "--json", limit_s=20)["features"]
        except ChildError as error:
            return Finding("warn", f"{name}: its features cannot be read: {error}", "Try: aprilcam cameras --features SERIAL")
        told = next((row["value"] for row in rows if row["name"] == "GevSCPSPacketSize"), None)
        if told is None or not told.isdigit():
            return Finding("skipped", f"{name}: it does not tell GevSCPSPacketSize")
        cameras = situation.config.cameras if situation.config is not None else ()
        configured = next((camera for camera in cameras if camera.name == name), None)
        wanted = configured.packet_size_bytes if isinstance(configured, GenicamCamera) else None
        interface = interface_to(situation, seen.address)
        return judge_packet_size(name, int(told), wanted, mtu_of(situation, interface) if interface is not None else None)


def judge_packet_size(name: str, has: int, configured: int | None, mtu: int | None) -> Finding:
    """has: what the camera says; configured: what the daemon will write, None: nothing; mtu: of the interface that hears it."""
    size = configured or has
    found = f"{name}: packets of {has} bytes" + (f", {configured} when the daemon has it" if configured else "")
    if mtu is not None and size > mtu:
        return Finding("fail", f"{found}; the interface carries {mtu}", f"Set its MTU to 9000, or packet_size_bytes = {mtu}")
    if size < JUMBO and mtu is not None and mtu >= JUMBO:
        mend = "Set packet_size_bytes = 8192, where every switch between carries it"
        return Finding("warn", f"{found}; the interface carries {mtu}", mend)
    return Finding("ok", found)


def _described(camera: CameraConfig) -> str:
    keys = ("serial", "user_name", "ip")
    return ", ".join(f"{key} {value}" for key in keys if (value := getattr(camera, key, None)) is not None)


def _judge_folder(name: str, path: Path) -> Finding:
    try:
        count = len(list_pictures(path))
    except CameraError as error:
        return Finding("fail", f"{name}: {error}", "Name a folder of pictures")
    if not count:
        return Finding("fail", f"{name}: no picture is in {path}", "Put pictures there, or name another folder")
    return Finding("ok", f"{name}: {count} pictures in {path}")
