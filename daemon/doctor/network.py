"""The network that GigE cameras stream over: MTU, receive buffer, reverse path filter, the card's ring."""

import array
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from config.schema import FolderCamera, GenicamCamera
from daemon.doctor.finding import Finding, Situation

RECEIVE_BUFFER = 33_554_432
"""net.core.rmem_max that docs/cameras.md asks for, bytes."""
JUMBO_MTU = 9_000
_SIOCETHTOOL = 0x8946
_ETHTOOL_GRINGPARAM = 0x10
_RTF_UP, _RTF_GATEWAY = 0x1, 0x2
_NO_CAMERA = "no camera with an address is configured or seen"


@dataclass(frozen=True)
class _Route:
    interface: str
    direct: bool
    """Whether it is the interface's own subnet, not one behind a router."""


def _route(situation: Situation, address: str) -> _Route | None:
    """By the longest prefix of IPv4's table (proc(5)): GigE Vision has no IPv6. None: there is no way."""
    target = ipaddress.ip_address(address)
    if not isinstance(target, ipaddress.IPv4Address):
        return None
    if target.is_loopback:
        return _Route("lo", True)
    best: tuple[int, _Route] | None = None
    for line in (situation.read("proc/net/route") or "").splitlines()[1:]:
        fields = line.split()
        # Addresses are in the machine's own byte order.
        network, mask = (struct.unpack("=I", struct.pack("!I", int(fields[place], 16)))[0] for place in (1, 7))
        flags = int(fields[3], 16)
        if flags & _RTF_UP and int(target) & mask == network and (best is None or mask > best[0]):
            best = mask, _Route(fields[0], not flags & _RTF_GATEWAY)
    return best[1] if best is not None else None


def interface_to(situation: Situation, address: str) -> str | None:
    """The network interface that reaches an address; None where none does."""
    route = _route(situation, address)
    return route.interface if route is not None else None


def mtu_of(situation: Situation, interface: str) -> int | None:
    """In bytes; None where it is not told."""
    return situation.number(f"sys/class/net/{interface}/mtu")


def _interfaces(situation: Situation, addresses: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of cameras by the interface that reaches them."""
    found: dict[str, list[str]] = {}
    for address, name in addresses.items():
        if (interface := interface_to(situation, address)) is not None:
            found.setdefault(interface, []).append(name)
    return found


def look_at_mtu(situation: Situation, addresses: Mapping[str, str]) -> Iterator[Finding]:
    """Of each interface that reaches a camera. addresses: name of a camera by its address."""
    if not addresses:
        yield Finding("skipped", _NO_CAMERA)
    for address, name in addresses.items():
        if interface_to(situation, address) is None:
            yield Finding("fail", f"{name}: no interface reaches {address}", "Give the network card an address of its subnet")
    for interface, names in _interfaces(situation, addresses).items():
        mtu = mtu_of(situation, interface)
        found = f"{interface} (to {', '.join(names)}): MTU {mtu}"
        mend = f"ip link set {interface} mtu {JUMBO_MTU}, and every switch between; kept in the network's configuration"
        packet = max((_packet_bytes(situation, name) for name in names), default=0)
        if mtu is None:
            yield Finding("skipped", f"{interface}: its MTU is not told")
        elif packet > mtu:
            yield Finding("fail", f"{found}, packet_size_bytes is {packet}", mend)
        elif mtu < JUMBO_MTU:
            yield Finding("warn", f"{found}: each frame takes six times the packets that it needs", mend)
        else:
            yield Finding("ok", found)


def _packet_bytes(situation: Situation, name: str) -> int:
    cameras = situation.config.cameras if situation.config is not None else ()
    sizes = (camera.packet_size_bytes for camera in cameras if isinstance(camera, GenicamCamera) and camera.name == name)
    return max((size for size in sizes if size is not None), default=0)


def look_at_receive_buffer(situation: Situation) -> Iterator[Finding]:
    """net.core.rmem_max: how much of a stream may wait for the camera's process."""
    size = situation.number("proc/sys/net/core/rmem_max")
    if size is None:
        yield Finding("skipped", "net.core.rmem_max is not told here")
        return
    found = f"net.core.rmem_max = {size}"
    if size >= RECEIVE_BUFFER:
        yield Finding("ok", found)
    elif situation.config is not None and all(_needs_no_network(camera) for camera in situation.config.cameras):
        yield Finding("ok", f"{found}; no camera of the configuration comes over a network")
    else:
        mend = f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER}, kept in /etc/sysctl.d/"
        yield Finding("warn", f"{found}: frames are lost while the process is not running", mend)


def _needs_no_network(camera: object) -> bool:
    return isinstance(camera, FolderCamera) or getattr(camera, "emulate", None) is not None


def look_at_reverse_path(situation: Situation, addresses: Mapping[str, str]) -> Iterator[Finding]:
    """A strict filter drops what a camera of another subnet sends (the kernel's ip-sysctl: the larger of `all` and the
    interface's own counts)."""
    if not addresses:
        yield Finding("skipped", _NO_CAMERA)
    for address, name in addresses.items():
        route = _route(situation, address)
        if route is None:
            yield Finding("skipped", f"{name}: no interface reaches {address}")
            continue
        places = ("all", route.interface)
        values = [situation.number(f"proc/sys/net/ipv4/conf/{place}/rp_filter") for place in places]
        strict = max((value for value in values if value is not None), default=0) == 1
        found = f"{name}: {'strict' if strict else 'not strict'} at {route.interface}"
        if strict and not route.direct:
            mend = f"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{route.interface}.rp_filter=2, kept in /etc/sysctl.d/"
            yield Finding("warn", f"{found}, and {address} is not of its subnet: what it sends may be dropped", mend)
        else:
            yield Finding("ok", f"{found}; {address} is {'of its subnet' if route.direct else 'behind a router'}")


def look_at_ring(situation: Situation, addresses: Mapping[str, str]) -> Iterator[Finding]:
    """How many packets the card itself can hold, of how many it could (`ethtool -g`)."""
    interfaces = _interfaces(situation, addresses)
    if not interfaces:
        yield Finding("skipped", _NO_CAMERA)
    for interface in interfaces:
        try:
            most, now = receive_ring(interface)
        except OSError as error:
            yield Finding("skipped", f"{interface}: it tells no ring ({error.strerror})")
            continue
        yield judge_ring(interface, most, now)


def receive_ring(interface: str) -> tuple[int, int]:
    """(most, now) descriptors of the receive ring, by ioctl (linux/ethtool.h, struct ethtool_ringparam). Raises OSError."""
    ring = array.array("B", struct.pack("=9I", _ETHTOOL_GRINGPARAM, *[0] * 8))
    request = struct.pack("16sP16x", interface.encode(), ring.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    _, most, _, _, _, now, *_ = struct.unpack("=9I", ring.tobytes())
    return most, now


def judge_ring(interface: str, most: int, now: int) -> Finding:
    """The largest ring is the best for cameras: it bridges moments when the CPU does not come to read it."""
    found = f"{interface}: receive ring of {now}, {most} at most"
    if now < most:
        return Finding("warn", found, f"ethtool -G {interface} rx {most}, kept in the network's configuration")
    return Finding("ok", found)
