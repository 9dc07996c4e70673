"""Stations: where frames wait, and where their results are put back into the order in which the frames came.

Every frame that enters gets a ticket. A ticket ends as a result or, at stations that take only the newest frame, as a
skip. Tickets end in any order (a fault at once, a judgement after the model); results leave in frame order.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from config.schema import RecipeConfig, Region, StationConfig
from connectors.contract import Reason
from daemon.frame import Frame
from daemon.ledger import Entry
from daemon.threshold import Limits, ThresholdOverride, limits_of
from model.bank import Bank
from model.calibration import Calibration
from model.detector import Mode, Reference


@dataclass(frozen=True)
class Taught:
    """What judges a recipe's frames."""

    reference: Reference
    calibration: Calibration

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
        """The recipe's region of interest, None for the whole frame."""
        return self.recipe.region

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
    """One frame's way through the daemon. Owned by whichever stage holds it; `entry` is set once."""

    station: "Station"
    frame: Frame
    program: Program
    """What the station inspected by when the frame came."""
    entry: Entry | None = None
    skipped: bool = False
    taken_s: float = 0.0
    """Monotonic: when the inspector took it."""


@dataclass(frozen=True)
class Offer:
    """What became of a frame that was offered: the ticket, whose turn it is now; the ticket it displaced; a refusal."""

    ticket: Ticket
    displaced: Ticket | None = None
    refused: Reason | None = None


@dataclass
class Station:
    """One station's bounded queue and its order. All methods may be called from any thread."""

    config: StationConfig
    program: Program
    takes_every_frame: bool
    submit: Callable[[Sequence[Entry]], None]
    _queue: deque[Ticket] = field(default_factory=deque)
    _order: deque[Ticket] = field(default_factory=deque)
    _ended_s: float = 0.0
    _came_s: float = 0.0
    _gaps: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The station's name."""
        return self.config.name

    def offer(self, frame: Frame) -> Offer:
        """Queue a frame that can be judged. A full queue refuses it where every frame counts, else gives up its oldest."""
        with self._lock:
            ticket = Ticket(self, frame, self.program)
            now_s = time.monotonic()
            if self._came_s:
                self._gaps.append(now_s - self._came_s)
            self._came_s = now_s
            self._order.append(ticket)
            displaced = None
            if len(self._queue) >= self.config.queue_frames:
                if self.takes_every_frame:
                    return Offer(ticket, refused="overload")
                displaced = self._queue.popleft()
            self._queue.append(ticket)
        if displaced is not None:
            self._end(displaced, None)
        return Offer(ticket, displaced)

    def enter(self, frame: Frame) -> Ticket:
        """A ticket for a frame that cannot be judged: it takes its place in the order, not in the queue."""
        with self._lock:
            ticket = Ticket(self, frame, self.program)
            self._order.append(ticket)
        return ticket

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
            return now_s - max(self._ended_s, self._order[0].frame.arrived_s) if self._order else 0.0

    def finish(self, ticket: Ticket, entry: Entry) -> bool:
        """End a ticket with a result, and submit every result whose turn has come. False: it had ended before."""
        return self._end(ticket, entry)

    def _end(self, ticket: Ticket, entry: Entry | None) -> bool:
        with self._lock:
            if ticket.entry is not None or ticket.skipped:
                return False  # a frame has one end; the first one counts
            ticket.entry, ticket.skipped = entry, entry is None
            self._ended_s = time.monotonic()
            ready: list[Entry] = []
            while self._order and (self._order[0].entry is not None or self._order[0].skipped):
                first = self._order.popleft()
                if first.entry is not None:
                    ready.append(first.entry)
            # Submitted under the lock: two threads must not overtake each other between here and the ledger's queue.
            if ready:
                self.submit(ready)
        return True
