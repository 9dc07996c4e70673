"""The inspector: it owns the device, gathers frames of all stations into batches, and runs the model."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from daemon.batching import Batching
from daemon.finisher import Finisher
from daemon.station import Station, Taught, Ticket, Untaught
from model.bank import Bank
from model.detector import Judgement, Reference

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
P = ParamSpec("P")
T = TypeVar("T")

SHARE = 0.1
"""However many frames come, background work gets this share of the time: a build is slow then, not stuck."""
FAIR_S = 1.0
"""And one slice this often, however long the last one took."""
ROOM = 1.5
"""A slice is begun when so many times the longest of the last ones fits before the next frame."""
LONGEST_REST_S = 1.0
"""A lane looks around at least so often."""
FORGET = 0.9
"""How fast the longest slice is forgotten, per slice."""


class Judge(Protocol):
    """What the inspector asks of the model: `model.detector.Detector` is one."""

    def judge(self, pictures: Sequence[Pixels], references: Sequence[Bank | Reference]) -> Judgement:
        """Maps and scores of pictures H x W (x 3), each by its own reference."""


def _be_nice(nice: int) -> None:
    # Linux gives each thread a niceness of its own.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


class DeviceBrokenError(RuntimeError):
    """The device's context cannot be used any more; only a new process helps."""


def region_of(ticket: Ticket) -> Pixels | None:
    """The pixels to judge, None when the frame does not hold the recipe's region."""
    pixels, region = ticket.frame.pixels, ticket.program.region
    if pixels is None or region is None:
        return pixels
    if region.x + region.width > pixels.shape[1] or region.y + region.height > pixels.shape[0]:
        return None
    return pixels[region.y : region.y + region.height, region.x : region.x + region.width]


class Inspector:
    """Owner of the device. Stations are asked in turn, so that a flooding camera cannot starve another.

    Everything that computes with torch runs on its threads, the lanes (`on_device` before `start`: on the first): each thread
    that does gets an OpenMP team of its own, and once the teams outnumber the cores their threads sleep instead of spinning,
    which made a lone frame take 65 ms instead of 37 on two cores. So there are as many lanes as the model takes callers, one
    on a GPU. Each takes the next batch when it is done with its own; the stations' tickets keep the order.

    Work in the background (building banks) comes as generators, of which one slice, up to the next `yield`, is run when no
    frame waits and none is expected before its end, going by each station's own rhythm (`Station.rest_s`), or when it has had
    less than its SHARE of the time. The first lane does it.
    """

    def __init__(
        self,
        finisher: Finisher,
        *,
        max_batch: int = 1,
        max_wait_s: float = 0.0,
        on_batch: Callable[[int], None] = lambda _: None,
        on_broken: Callable[[str], None] = lambda _: None,
        nice: int = 0,
    ) -> None:
        """nice: of its threads, and of those that they make."""
        self._stations: tuple[Station, ...] = ()
        self._finisher = finisher
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._on_batch = on_batch
        self._on_broken = on_broken
        self._wake = threading.Condition()
        self._turn = 0
        self._taking = threading.Lock()
        self._stopping = False
        self._progress_s = [time.monotonic()]
        self._lower = partial(_be_nice, nice)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="inspector", initializer=self._lower)
        self._others: ThreadPoolExecutor | None = None
        self._ended: list[Future[None]] = []
        self._background: deque[tuple[Generator[object, None, Any], Future[Any]]] = deque()
        self._slice_s = self._last_slice_s = 0.0
        """The longest lately, and the last."""
        self._sliced_s = 0.0

    def on_device(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run on the inspector's thread and wait; only before `start`."""
        return self._device.submit(function, *args, **kwargs).result()

    def submit_background(self, work: Generator[object, None, T]) -> "Future[T]":
        """Run on the inspector's thread, in slices between batches; several works take turns. Before `start`, at once.

        The future is cancelled when the inspector stops first.
        """
        future: Future[T] = Future()
        with self._wake:
            if self._stopping:
                future.cancel()
                return future
            self._background.append((work, future))
            self._wake.notify_all()  # whoever wakes first need not be the first lane
            if not self._ended:
                self._device.submit(self._finish_background)
        return future

    def serve(self, stations: Sequence[Station]) -> None:
        """Take frames of these from now on, from no batch to the next of two sets. A station that goes has no frame left."""
        with self._taking:
            self._stations = tuple(stations)

    def start(self, judge: Judge, stations: Sequence[Station], batching: Batching | None = None, lanes: int = 1) -> None:
        """Begin to inspect. batching: None: as it was made for. lanes: batches that are judged at the same time."""
        if batching is not None:
            self._max_batch, self._max_wait_s = batching.max_batch, batching.max_wait_s
        self.serve(stations)
        self._slice_s = self._last_slice_s = 0.0  # those before warmed the device up
        self._progress_s = [time.monotonic()] * lanes
        if lanes > 1:
            self._others = ThreadPoolExecutor(lanes - 1, thread_name_prefix="inspector-lane", initializer=self._lower)
            self._ended = [self._others.submit(self._run, judge, lane) for lane in range(1, lanes)]
        self._ended.append(self._device.submit(self._run, judge, 0))

    def idle_s(self) -> float:
        """Seconds since a lane's loop last turned, the slowest one's; 0 before `start`: that time is for loading and teaching."""
        return time.monotonic() - min(self._progress_s) if self._ended else 0.0

    def notify(self) -> None:
        """A station has a frame."""
        with self._wake:
            self._wake.notify()

    def stop(self) -> None:
        """Judge the batches at hand, then answer what still waits with `unknown: stopped`."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for ended in self._ended:
            ended.result()
        self._device.shutdown()
        if self._others is not None:
            self._others.shutdown()
        self._cancel_background()
        for ticket in self._take(1_000_000):
            ticket.taken_s = time.monotonic()
            self._finisher.unknown(ticket, "stopped", "the daemon was stopped before this frame's turn")

    def _run(self, judge: Judge, lane: int) -> None:
        try:
            while self._turn_round(judge, lane):
                self._progress_s[lane] = time.monotonic()
        except DeviceBrokenError as error:
            log.critical("device cannot be used any more: %s", error)
            self._on_broken(str(error))
        finally:
            with self._wake:
                self._stopping = True
                self._wake.notify_all()
            if lane == 0:
                self._cancel_background()

    def _turn_round(self, judge: Judge, lane: int) -> bool:
        """One batch, and on the first lane one slice of background work where there is room for it. False to end."""
        with self._wake:
            if not self._stopping and not self._frames_wait():
                wait_s = self._rest_s() if lane == 0 else LONGEST_REST_S
                if wait_s > 0:
                    self._wake.wait(wait_s)
            if self._stopping:
                return False
        batch = self._gather()
        if batch:
            try:
                self._inspect(judge, batch)
            except DeviceBrokenError as error:
                for ticket in batch:
                    if not ticket.ended:
                        self._finisher.unknown(ticket, "model_failed", str(error))
                raise
        if lane == 0 and self._background and (self._overdue_s() <= 0 or (not self._frames_wait() and self._rest_s() == 0)):
            self._slice()
        return True

    def _frames_wait(self) -> bool:
        return any(station.waiting() for station in self._stations)

    def _rest_s(self) -> float:
        """Seconds to do nothing, unless a frame comes: 0 when a slice of background work has room."""
        if not self._background:
            return LONGEST_REST_S
        now_s = time.monotonic()
        room_s = max((station.rest_s(now_s, ROOM * self._slice_s) for station in self._stations), default=0.0)
        return max(0.0, min(self._overdue_s(), room_s))

    def _overdue_s(self) -> float:
        """Seconds until background work has had less than its share."""
        return self._sliced_s + min(self._last_slice_s / SHARE, FAIR_S) - time.monotonic()

    def _slice(self) -> None:
        work, future = self._background.popleft()
        started_s = time.monotonic()
        try:
            next(work)
        except StopIteration as end:
            future.set_result(end.value)
        except BaseException as error:
            future.set_exception(error)
            if "CUDA error" in str(error):
                raise DeviceBrokenError(str(error)) from error
        else:
            self._background.append((work, future))
        self._sliced_s = time.monotonic()
        self._last_slice_s = self._sliced_s - started_s
        self._slice_s = max(self._last_slice_s, FORGET * self._slice_s)

    def _finish_background(self) -> None:
        """All of it, while there are no frames yet."""
        while self._background:
            self._slice()

    def _cancel_background(self) -> None:
        while self._background:
            work, future = self._background.popleft()
            work.close()
            future.cancel()

    def _gather(self) -> list[Ticket]:
        batch = self._take(self._max_batch)
        # Waiting helps only when another camera may still fill the batch, and costs every frame in it the wait.
        if not batch or self._max_wait_s == 0 or len(self._stations) == 1:
            return batch
        until_s = time.monotonic() + self._max_wait_s
        while len(batch) < self._max_batch and (left_s := until_s - time.monotonic()) > 0:
            with self._wake:
                self._wake.wait(left_s)
            batch += self._take(self._max_batch - len(batch))
        return batch

    def _take(self, most: int) -> list[Ticket]:
        """Up to `most` frames, one from each station in turn, starting after the station that was served last."""
        batch: list[Ticket] = []
        idle = 0
        with self._taking:
            while len(batch) < most and idle < len(self._stations):
                station = self._stations[self._turn % len(self._stations)]
                self._turn += 1
                ticket = station.take()
                if ticket is None:
                    idle += 1
                else:
                    idle = 0
                    batch.append(ticket)
        return batch

    def _inspect(self, judge: Judge, batch: list[Ticket]) -> None:
        ready: list[tuple[Ticket, Taught, Pixels]] = []
        now_s = time.monotonic()
        for ticket in batch:
            ticket.taken_s = now_s
            taught = ticket.program.taught
            pixels = region_of(ticket)
            if isinstance(taught, Untaught):
                self._finisher.unknown(ticket, "not_taught", taught.reason)
            elif pixels is None:
                region = ticket.program.region
                shape = ticket.frame.pixels.shape if ticket.frame.pixels is not None else ()
                detail = f"region {region} of recipe {ticket.program.recipe.name!r} is outside a frame of shape {shape}"
                self._finisher.unknown(ticket, "region_outside_frame", detail)
            else:
                ready.append((ticket, taught, pixels))
        while ready:
            part, ready = ready[: self._max_batch], ready[self._max_batch :]
            self._judge_part(judge, part)

    def _judge_part(self, judge: Judge, part: list[tuple[Ticket, Taught, Pixels]]) -> None:
        self._on_batch(len(part))
        started_s = time.monotonic()
        try:
            judged = judge.judge([pixels for _, _, pixels in part], [taught.reference for _, taught, _ in part])
        except torch.OutOfMemoryError as error:
            if len(part) == 1:
                self._fail(part[0][0], error, started_s)
                return
            self._max_batch = max(1, len(part) // 2)
            log.warning("device out of memory with %d frames: batches are at most %d now", len(part), self._max_batch)
            torch.cuda.empty_cache()
            self._halves(judge, part)
        except Exception as error:
            if "CUDA error" in str(error):
                raise DeviceBrokenError(str(error)) from error
            log.exception("the model failed on a batch of %d frames", len(part))
            if len(part) == 1:
                self._fail(part[0][0], error, started_s)
            else:
                self._halves(judge, part)  # one bad frame must not take the others' verdicts
        else:
            inference_s = time.monotonic() - started_s
            for (ticket, taught, _), anomaly_map, score in zip(part, judged.maps, judged.scores, strict=True):
                self._finisher.judged(ticket, taught, anomaly_map, float(score), inference_s)

    def _halves(self, judge: Judge, part: list[tuple[Ticket, Taught, Pixels]]) -> None:
        middle = len(part) // 2
        self._judge_part(judge, part[:middle])
        self._judge_part(judge, part[middle:])

    def _fail(self, ticket: Ticket, error: Exception, started_s: float) -> None:
        detail = f"{type(error).__name__}: {error}"[:500]
        self._finisher.unknown(ticket, "model_failed", detail, time.monotonic() - started_s)
