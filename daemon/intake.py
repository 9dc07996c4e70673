"""The intake: frames of one camera on their way into its station, triggers, and what does not come or end in time."""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from config.errors import TriggerError
from connectors.contract import Reason
from daemon.alarms import Alarms
from daemon.finisher import Finisher
from daemon.frame import Frame
from daemon.part import Identity
from daemon.station import Part, Station

STALE_S = 0.25
"""A trigger that has waited longer behind others is not fired: another part may be there by now."""


class Intake:
    """Between a camera and its station. `arrived` is called on the supervisor's thread, the others on any."""

    def __init__(
        self,
        station: Station,
        finisher: Finisher,
        alarms: Alarms,
        *,
        count: Callable[[str, int], None],
        notify: Callable[[], None],
        fire: Callable[[], bool],
        replace_camera: Callable[[str], None],
    ) -> None:
        """count: told of what became of so many frames (`aprilcam_frames_total`'s outcomes). notify: a frame waits. fire: one
        software trigger; whether the camera took it. replace_camera: start it anew, for the reason given."""
        self._station = station
        self._finisher = finisher
        self._alarms = alarms
        self._count = count
        self._notify = notify
        self._fire = fire
        self._replace_camera = replace_camera
        self._simulated = False
        self._stopped: str | None = None
        """Why no frame comes any more."""
        self._triggering = threading.Lock()

    def arrived(self, frame: Frame) -> None:
        """A frame, or a fault in its place."""
        station = self._station
        self._simulated = frame.is_simulated
        if frame.fault is not None or frame.pixels is None:
            self._faulty(frame, frame.fault or "unreadable: no pixels")
            return
        offer = station.offer(frame)
        if offer is None:
            self._count("unclaimed", 1)
            return
        self._watch(offer.ticket.part)
        if offer.refused is not None:
            self._count("refused", 1)
            self._finisher.unknown(offer.ticket, offer.refused, f"{station.config.queue_frames} frames were waiting already")
            return
        if offer.displaced is not None:
            self._count("skipped", 1)
        self._notify()

    def _faulty(self, frame: Frame, detail: str) -> None:
        reason = _reason_of(detail)
        if frame.lost and not self._station.takes_every_frame:
            return  # the next one is as good: nothing is owed for it
        if reason == "overload" and not self._station.takes_every_frame:
            # The ring is smaller than the queue (large frames): an older frame makes room for the ones to come.
            self._count("skipped", 1 + self._station.displace())
            return
        ticket = self._station.enter(frame)
        if ticket is None:
            self._count("unclaimed", 1)
            return
        self._count("faulty", 1)
        self._watch(ticket.part)
        self._finisher.unknown(ticket, reason, detail)

    # Triggers and names.

    def trigger(self, identity: Identity) -> None:
        """Take one part's frames now; its result follows. Raises TriggerError when the camera does not take the trigger."""
        station = self._station
        if not station.triggered:
            raise TriggerError(f'station {station.name}: its camera takes no software trigger. Set trigger = "software" for it')
        if self._stopped is not None:
            raise TriggerError(f"station {station.name}: {self._stopped}")
        # Parts and triggers in the same order, whoever sends them.
        if not self._triggering.acquire(timeout=STALE_S):
            raise TriggerError(
                f"station {station.name}: the trigger before this one is still on its way to the camera. Try again"
            )
        try:
            part = station.expect(identity)
            fired = 0
            while fired < part.frames and self._fire():
                fired += 1
            if fired == 0 and station.cancel(part):
                raise TriggerError(f"station {station.name}: its camera did not take the trigger. The station's state says why")
            if fired < part.frames:
                # The next part's frames are not to fill this one's gaps.
                for ticket in station.shorten(part, fired, lambda: self._never_came(part)):
                    self._finisher.unknown(ticket, "no_frame", f"the camera took {fired} of {part.frames} triggers")
        finally:
            self._triggering.release()
        # From here on it is accepted: what does not come is told as a result.
        self._alarms.at(time.monotonic() + station.config.frame_timeout_ms / 1e3, lambda: self._missing(part))

    def identify(self, identity: Identity) -> bool:
        """Name a part, see `Station.identify`."""
        return self._station.identify(identity)

    def camera_lost(self) -> None:
        """Its process has ended: what it was to send does not come, and what another one sends is of other parts."""
        for part in self._station.parts():
            if self._station.forgive(part):
                self._end(part, "no_frame", "the camera was lost before this frame came")

    def stop(self, why: str) -> None:
        """The camera has been stopped: no frame comes any more. What waits for one, or for a name, waits no longer."""
        self._stopped = why
        for part in self._station.parts():
            if self._station.forgive(part):
                self._end(part, "stopped", f"{why} before this frame came")
            part.hurried = True
        self._station.release_unnamed()

    def end_all(self, detail: str) -> None:
        """After `stop`: what has no result by now is `unknown: stopped`."""
        for part in self._station.parts():
            self._end(part, "stopped", detail)

    # Time.

    def _watch(self, part: Part) -> None:
        """A frame has joined it."""
        config = self._station.config
        if len(part.tickets) > 1:
            return
        came_s = part.tickets[0].frame.arrived_s
        if (limit_ms := config.deadline_ms) is not None:
            self._alarms.at(came_s + limit_ms / 1e3, lambda: self._overdue(part, limit_ms))
        if part.frames > 1 and not self._station.triggered:
            self._alarms.at(came_s + config.frame_timeout_ms / 1e3, lambda: self._missing(part))
        if part.identity is None and config.part_after_ms > 0:
            self._alarms.at(part.names_until_s, self._station.release_unnamed)

    def _overdue(self, part: Part, limit_ms: float) -> None:
        self._end(part, "deadline", f"not judged within {limit_ms:g} ms of its arrival", owed=True)

    def _missing(self, part: Part) -> None:
        missing = self._station.forgive(part)
        if not missing:
            return
        limit_ms = self._station.config.frame_timeout_ms
        detail = f"{missing} of {part.frames} frames did not come within {limit_ms:g} ms"
        if self._station.triggered:
            # Should it come after all, it must not be taken for the next part's.
            self._replace_camera(f"a triggered frame did not come within {limit_ms:g} ms")
        self._end(part, "no_frame", detail)

    def _end(self, part: Part, reason: Reason, detail: str, *, owed: bool = False) -> None:
        for ticket in self._station.give_up(part, lambda: self._never_came(part), owed=owed):
            never_came = reason == "deadline" and ticket.frame.fault is not None
            self._finisher.unknown(ticket, "no_frame" if never_came else reason, detail)

    def _never_came(self, part: Part) -> Frame:
        return Frame(
            camera=self._station.config.camera,
            number=0,
            timestamp_ns=time.time_ns(),
            clock="host",
            trigger="software" if self._station.triggered else "none",
            arrived_at=datetime.now(UTC),
            arrived_s=part.came_s,
            acquire_s=0.0,
            pixels=None,
            fault="no_frame: it did not come",
            is_simulated=self._simulated,
        )


class Intakes:
    """The stations' intakes, as commands ask for them (`daemon.command_parts.Lines`)."""

    def __init__(self, intakes: Mapping[str, Intake]) -> None:
        self._intakes = intakes

    def trigger(self, station: str, identity: Identity) -> None:
        """Take a part's frames now. Raises TriggerError."""
        self._of(station).trigger(identity)

    def identify(self, station: str, identity: Identity) -> bool:
        """Name a part; whether it had come already."""
        return self._of(station).identify(identity)

    def _of(self, station: str) -> Intake:
        intake = self._intakes.get(station)
        if intake is None:
            raise TriggerError(f"station {station}: it was removed a moment ago")
        return intake


def _reason_of(fault: str) -> Reason:
    kind = fault.split(":", 1)[0]
    if kind == "overload":
        return "overload"
    return "incomplete" if kind in ("incomplete", "lost") else "unreadable"
