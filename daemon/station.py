"""Stations: where frames wait, and where their results are put back into the order in which the frames came.

Every frame that enters gets a ticket, and every ticket belongs to a part. A ticket ends with an outcome or, at stations that
take only the newest frame, as a skip. Tickets end in any order (a fault at once, a judgement after the model, a deadline
before it); a part whose tickets have all ended is one result, and results leave in the order in which the parts came.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from config.schema import RecipeConfig, Region, StationConfig
from connectors.contract import Reason
from daemon.frame import Frame
from daemon.ledger import Entry
from daemon.part import Identity, Outcome, entry_of, worst
from daemon.threshold import Limits, ThresholdOverride, limits_of
from model.bank import Bank
from model.calibration import Calibration
from model.detector import Mode, Reference


@dataclass(frozen=True)
class Taught:
    """What judges a recipe's frames."""

    reference: Reference
    calibration: Calibration
    region: Region | None = None
    """Of the frames that it judges; None for whole frames. The recipe's may be another one, while that one's bank is built."""

    @property
    def bank(self) -> Bank | None:
        """None where words alone judge."""
        return self.reference.bank

    @property
    def mode(self) -> Mode:
        """Which halves of APRIL-GAN judge."""
        if self.reference.text is None:
            return "few_shot"
        return "zero_shot" if self.reference.bank is None else "both"


@dataclass(frozen=True)
class Untaught:
    """Why a recipe's frames cannot be judged."""

    reason: str


@dataclass(frozen=True)
class Program:
    """What a station inspects by: replaced whole, by one assignment, so that each frame is judged by one of them."""

    recipe: RecipeConfig
    taught: Taught | Untaught = field(default_factory=lambda: Untaught("starting"))
    override: ThresholdOverride | None = None

    @property
    def region(self) -> Region | None:
        """The region of interest by which frames are judged, None for the whole frame."""
        return self.taught.region if isinstance(self.taught, Taught) else self.recipe.region

    @property
    def calibration(self) -> Calibration | None:
        """None while nothing judges."""
        return self.taught.calibration if isinstance(self.taught, Taught) else None

    @property
    def bank(self) -> Bank | None:
        """None while nothing judges, or words alone."""
        return self.taught.bank if isinstance(self.taught, Taught) else None

    @property
    def limits(self) -> Limits | None:
        """The thresholds in force, None where they would be calibrated ones and nothing judges."""
        return limits_of(self.recipe, self.override, self.calibration)

    @property
    def threshold(self) -> float | None:
        """Score above which a frame fails."""
        return limits.score if (limits := self.limits) is not None else None

    @property
    def threshold_stale(self) -> bool:
        """Whether it was set against another calibration."""
        if self.override is None:
            return False
        return self.override.stale(self.calibration, self.bank.hash if self.bank is not None else None)


@dataclass(eq=False)
class Ticket:
    """One frame's way through the daemon. Owned by whichever stage holds it; `outcome` is set once."""

    station: "Station"
    frame: Frame
    program: Program
    """What the station inspected by when the frame came."""
    part: "Part"
    outcome: Outcome | None = None
    skipped: bool = False
    taken_s: float = 0.0
    """Monotonic: when the inspector took it."""

    @property
    def ended(self) -> bool:
        """Whether it has an outcome, or was skipped."""
        return self.outcome is not None or self.skipped


@dataclass(eq=False)
class Part:
    """The frames that get one result together. Changed by its station alone, under the station's lock.

    frames: so many it has. came_s: when its trigger or first frame came, monotonic. It may be named until `names_until_s`, and
    without an identity its result waits so long, unless it is `hurried`. owed: frames that were given up and may still come;
    they are not to be taken for another part's.
    """

    frames: int
    came_s: float
    names_until_s: float
    identity: Identity | None = None
    tickets: list[Ticket] = field(default_factory=list)
    cancelled: bool = False
    hurried: bool = False
    owed: int = 0

    @property
    def waits_for_frames(self) -> bool:
        """Whether more are to come."""
        return len(self.tickets) < self.frames and not self.cancelled

    def done(self, now_s: float) -> bool:
        """Whether nothing is waited for."""
        if self.waits_for_frames or not all(ticket.ended for ticket in self.tickets):
            return False
        return self.identity is not None or self.hurried or now_s >= self.names_until_s or self.skipped

    @property
    def skipped(self) -> bool:
        """Whether it gets no result."""
        return self.cancelled or any(ticket.skipped for ticket in self.tickets)


@dataclass(frozen=True)
class Offer:
    """What became of a frame that was offered: its ticket, the ticket it displaced, a refusal."""

    ticket: Ticket
    displaced: Ticket | None = None
    refused: Reason | None = None


@dataclass
class Station:
    """One station's bounded queue and its order. All methods may be called from any thread.

    triggered: frames come only when a command asks for them. submit: takes the results, in order. release: told of the
    result_id of each frame that did not decide its part.
    """

    config: StationConfig
    program: Program
    takes_every_frame: bool
    submit: Callable[[Sequence[Entry]], None]
    triggered: bool = False
    release: Callable[[str], None] = lambda _: None
    _queue: deque[Ticket] = field(default_factory=deque)
    _order: deque[Part] = field(default_factory=deque)
    _open: deque[Part] = field(default_factory=deque)
    _named: deque[tuple[float, Identity]] = field(default_factory=deque)
    _nameless: deque[float] = field(default_factory=deque)
    """Until when each part whose result had to go without a name could still have been named."""
    _ended_s: float = 0.0
    _came_s: float = 0.0
    _gaps: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The station's name."""
        return self.config.name

    def offer(self, frame: Frame) -> Offer | None:
        """Queue a frame that can be judged. A full queue refuses it where every frame counts, else gives up its oldest.

        None for a frame that belongs to no part: no trigger asked for it, or its part was given up before it came.
        """
        with self._lock:
            ticket = self._ticket(frame)
            if ticket is None:
                return None
            now_s = time.monotonic()
            if self._came_s:
                self._gaps.append(now_s - self._came_s)
            self._came_s = now_s
            displaced = None
            if len(self._queue) >= self.config.queue_frames:
                if self.takes_every_frame:
                    return Offer(ticket, refused="overload")
                displaced = self._queue.popleft()
            self._queue.append(ticket)
        if displaced is not None:
            self._end(displaced, None)
        return Offer(ticket, displaced)

    def enter(self, frame: Frame) -> Ticket | None:
        """A ticket for a frame that cannot be judged: it takes its place in the order, not in the queue.

        None for a frame that belongs to no part.
        """
        with self._lock:
            return self._ticket(frame)

    def _ticket(self, frame: Frame) -> Ticket | None:
        self._shut_full()
        if not self._open:
            if self.triggered:
                return None
            self._new_part(frame.arrived_s, self._name_before(frame.arrived_s))
        part = self._open[0]
        if not part.waits_for_frames:
            part.owed -= 1
            return None
        ticket = Ticket(self, frame, self.program, part)
        part.tickets.append(ticket)
        return ticket

    def _shut_full(self) -> None:
        while self._open and not self._open[0].waits_for_frames and not self._open[0].owed:
            self._open.popleft()

    def _new_part(self, came_s: float, identity: Identity | None) -> Part:
        part = Part(self.config.frames_per_part, came_s, came_s + self.config.part_after_ms / 1e3, identity)
        self._order.append(part)
        self._open.append(part)
        return part

    def _name_before(self, came_s: float) -> Identity | None:
        """The oldest identity that came for this part; those that nobody claimed in time are forgotten."""
        while self._named:
            named_s, identity = self._named.popleft()
            if came_s - named_s <= self.config.part_before_ms / 1e3:
                return identity
        return None

    def expect(self, identity: Identity) -> Part:
        """A trigger is about to be fired: the next frames are this part's."""
        with self._lock:
            self._shut_full()
            return self._new_part(time.monotonic(), identity)

    def cancel(self, part: Part) -> bool:
        """The trigger was not taken: there will be no result. False when a frame came all the same."""
        with self._lock:
            if part.tickets:
                return False
            part.cancelled = True
            self._open.remove(part)
            self._submit_ready()
            return True

    def identify(self, identity: Identity) -> bool:
        """Name the oldest part without a name that came just before, else the next one to come; True for the former."""
        with self._lock:
            now_s = time.monotonic()
            while self._nameless:  # older than any that waits
                if now_s <= self._nameless.popleft():
                    return True  # its result went at its deadline; the name is not the next part's
            for part in self._order:
                if part.identity is None and now_s <= part.names_until_s and not part.skipped:
                    part.identity = identity
                    self._submit_ready()
                    return True
            self._named.append((now_s, identity))
            while len(self._named) > self.config.queue_frames:
                self._named.popleft()
            return False

    def parts(self) -> list[Part]:
        """Those without a result so far, in their order, and those that are owed frames."""
        with self._lock:
            return list(dict.fromkeys([*self._order, *self._open]))

    def release_unnamed(self) -> None:
        """Some part may have waited long enough for its name."""
        with self._lock:
            self._submit_ready()

    def give_up(self, part: Part, frame: Callable[[], Frame], *, owed: bool) -> list[Ticket]:
        """What of a part has not ended, to be ended now; for each frame that did not come, one that `frame` makes.

        Its result waits for no name any more. owed: those frames may still come.
        """
        with self._lock:
            part.hurried = True
            self._submit_ready()
            missing = self._fill(part, frame, part.frames - len(part.tickets))
            part.owed = len(missing) if owed else 0
            open_ = [ticket for ticket in part.tickets if not ticket.ended]
            for ticket in open_:
                if ticket in self._queue:
                    self._queue.remove(ticket)
            return open_

    def shorten(self, part: Part, frames: int, frame: Callable[[], Frame]) -> list[Ticket]:
        """Only so many frames of a part will come, or as many as came already. Tickets for the others, to be ended now."""
        with self._lock:
            return self._fill(part, frame, part.frames - max(frames, len(part.tickets)))

    def _fill(self, part: Part, frame: Callable[[], Frame], count: int) -> list[Ticket]:
        if part not in self._order:
            return []
        made = [Ticket(self, frame(), self.program, part) for _ in range(count)]
        part.tickets += made
        return made

    def forgive(self, part: Part) -> int:
        """No frame of this part is waited for any more. How many had not come."""
        with self._lock:
            missing = part.owed + (part.frames - len(part.tickets) if part.waits_for_frames else 0)
            part.owed = 0
            return missing

    def displace(self) -> int:
        """Give up the frame that has waited longest: 1, or 0 when none waits."""
        ticket = self.take()
        if ticket is None:
            return 0
        self._end(ticket, None)
        return 1

    def take(self) -> Ticket | None:
        """The frame that has waited longest, None when none waits."""
        with self._lock:
            return self._queue.popleft() if self._queue else None

    def waiting(self) -> int:
        """Frames in the queue."""
        return len(self._queue)

    def rest_s(self, now_s: float, need_s: float) -> float:
        """Seconds for which nothing that takes `need_s` should begin, as a frame is expected before its end.

        Going by the last eight gaps between frames, the next one is due after the shortest of them. When it has not come
        by twice that, the rhythm is broken (a stop, or parts that come as they like) and nothing is expected.
        """
        with self._lock:
            if not self._gaps:
                return 0.0
            gap_s = min(self._gaps)
            due_s = self._came_s + gap_s
        return 0.0 if now_s + need_s <= due_s else max(0.0, due_s + gap_s - now_s)

    def stuck_s(self, now_s: float) -> float:
        """Seconds without any end of a frame while one waits for its own."""
        with self._lock:
            return now_s - max(self._ended_s, self._order[0].came_s) if self._order else 0.0

    def finish(self, ticket: Ticket, outcome: Outcome) -> bool:
        """End a ticket, and submit every result whose turn has come. False: it had ended before."""
        return self._end(ticket, outcome)

    def _end(self, ticket: Ticket, outcome: Outcome | None) -> bool:
        with self._lock:
            if ticket.ended:
                return False  # a frame has one end; the first one counts
            ticket.outcome, ticket.skipped = outcome, outcome is None
            if outcome is None or outcome.result.reason != "deadline" or not ticket.taken_s:
                # The part may wait for others or its name, which is not to hold a slot of the camera's ring.
                ticket.frame = replace(ticket.frame, pixels=None)
            self._submit_ready()
        return True

    def _submit_ready(self) -> None:
        """Under the lock: two threads must not overtake each other between here and the ledger's queue."""
        now_s = self._ended_s = time.monotonic()
        ready: list[Entry] = []
        while self._order and self._order[0].done(now_s):
            part = self._order.popleft()
            if part.skipped:
                continue
            if part.identity is None and part.names_until_s > now_s:
                self._nameless.append(part.names_until_s)
            outcomes = [ticket.outcome for ticket in part.tickets if ticket.outcome is not None]
            decides = worst(outcomes)
            ready.append(entry_of(outcomes, decides, part.identity))
            for other in outcomes:
                if other is not decides:
                    self.release(other.result.result_id)
        if ready:
            self.submit(ready)
