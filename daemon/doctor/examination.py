"""The checks of `aprilcam doctor`, in order, and how they are run: one at a time, each with a limit, none ends the others."""

import threading
from collections.abc import Callable, Sequence

from daemon.doctor.broker import look_at_broker
from daemon.doctor.cameras import Cameras
from daemon.doctor.disk import look_at_disk
from daemon.doctor.finding import Check, Finding, Report, Situation
from daemon.doctor.gpu import look_at_gpu, look_at_torch
from daemon.doctor.network import look_at_mtu, look_at_receive_buffer, look_at_reverse_path, look_at_ring
from daemon.doctor.permissions import look_at_configuration, look_at_permissions
from daemon.doctor.system import look_at_clock, look_at_file_limit
from daemon.doctor.weights import look_at_weights


def checks(cameras: Cameras) -> tuple[Check, ...]:
    """All of them. A new one is a function in a file of this folder, and a line here."""
    return (
        Check("configuration", look_at_configuration),
        Check("gpu", look_at_gpu, 15.0),
        Check("torch", look_at_torch, 90.0),
        Check("weights", look_at_weights, 60.0),
        Check("cameras", cameras.look_at_cameras, 45.0),
        Check("packet size", cameras.look_at_packet_size, 60.0),
        Check("mtu", lambda situation: look_at_mtu(situation, cameras.addresses(situation))),
        Check("receive buffer", look_at_receive_buffer),
        Check("reverse path filter", lambda situation: look_at_reverse_path(situation, cameras.addresses(situation))),
        Check("nic ring", lambda situation: look_at_ring(situation, cameras.addresses(situation))),
        Check("broker", look_at_broker, 20.0),
        Check("disk", look_at_disk, 30.0),
        Check("clock", look_at_clock),
        Check("file limit", look_at_file_limit),
        Check("permissions", look_at_permissions),
    )


def examine(situation: Situation, wanted: Sequence[Check], tell: Callable[[str], None] = lambda _: None) -> Report:
    """Run each check after the other. `tell` gets the name of the one that is to run. Raises nothing that a check raises."""
    findings: list[tuple[str, Finding]] = []
    for check in wanted:
        tell(check.name)
        findings += [(check.name, finding) for finding in _run(check, situation)]
    return Report(tuple(findings))


def _run(check: Check, situation: Situation) -> list[Finding]:
    found: list[Finding] = []
    # A thread of its own, and one that the process does not wait for: a call that hangs (a dead NFS server) ends with us.
    thread = threading.Thread(target=_look, args=(check, situation, found), name=f"doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(check.limit_s)
    if thread.is_alive():
        mend = "Look at the machine's log (journalctl -k): a device or a server does not answer"
        return [Finding("fail", f"the check {check.name!r} did not end within {check.limit_s:g} s", mend)]
    return list(found)


def _look(check: Check, situation: Situation, found: list[Finding]) -> None:
    try:
        found += check.look(situation)
    except Exception as error:
        reason = f"the check {check.name!r} itself failed: {type(error).__name__}: {error}"
        found[:] = [Finding("fail", reason, "This is an error in aprilcam: report it, with this line")]
