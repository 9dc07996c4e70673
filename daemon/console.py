"""What a person at a terminal sees of the daemon. Printing has a thread of its own: a terminal that blocks costs no verdict."""

import logging
import queue
import statistics
import sys
import threading
from collections import Counter, deque
from datetime import UTC, datetime
from types import TracebackType

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from config.schema import Config
from connectors.contract import ResultOut
from daemon.service import Service
from daemon.station_table import station_table

SHOWN = {"pass": ("✔ pass   ", "green"), "fail": ("✘ FAIL   ", "bold red"), "unknown": ("? UNKNOWN", "bold yellow")}
BACKLOG = 1_000
"""Result lines that may wait for the terminal; past it lines are left out, and counted."""


class LogHandler(logging.Handler):
    """Log records as one line each on the same terminal, above a progress bar that runs."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.INFO)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._print(record)
        except Exception:  # a terminal that went away must not end whoever had something to say
            self.handleError(record)

    def _print(self, record: logging.LogRecord) -> None:
        style = "dim" if record.levelno < logging.WARNING else "yellow" if record.levelno < logging.ERROR else "bold red"
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        text = Text(f"{datetime.fromtimestamp(record.created, UTC):%H:%M:%S} {level}{self.format(record)}", style)
        self._terminal.print(text)


class Console:
    """Prints progress, the station table, the addresses, a line per result, and a summary."""

    def __init__(self, quiet: bool) -> None:
        """`quiet` leaves out the result lines (for a service whose log is kept)."""
        # No colouring by guess, and brackets in messages ("[mqtt] host") are text. Lines are never cut to the width.
        self.terminal = Terminal(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._quiet = quiet
        self._progress: Progress | None = None
        self._tasks: dict[str, object] = {}
        self._lines: queue.Queue[ResultOut | None] = queue.Queue(BACKLOG)
        self._left_out = 0
        self._verdicts: Counter[str] = Counter()
        self._latencies: deque[float] = deque(maxlen=10_000)
        self._thread = threading.Thread(target=self._print_results, name="console", daemon=True)

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._end_progress()

    def progress(self, what: str, done: int, total: int) -> None:
        """Show a step of the start-up; a bar where there is a terminal, else a line at its end."""
        if not self.terminal.is_terminal:
            if done == total:
                self.terminal.print(f"{what}: done" if total <= 1 else f"{what}: {total} of {total}")
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.terminal,
            )
            self._progress.start()
        task = self._tasks.setdefault(what, self._progress.add_task(what, total=total) if what not in self._tasks else None)
        self._progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def started(self, service: Service) -> None:
        """The station table and the addresses; result lines follow from here on."""
        self._end_progress()
        self.terminal.print()
        self.terminal.print(station_table(vars(view) for view in service.health.views()), soft_wrap=False)
        for view in service.health.views():
            if view.device is not None:
                self.terminal.print(view.device, style="dim")
            for note in filter(None, (view.reason, view.advice)):
                self.terminal.print(f"{view.station}: {note}", style="yellow")
        self.terminal.print()
        for label, text in _addresses(service.config, service.http_url):
            self.terminal.print(Text.assemble((f"{label:<9}", "bold"), text))
        if service.health.broker_trouble:
            self.terminal.print(service.health.broker_trouble, "Results wait in the outbox.", style="yellow")
        self.terminal.print(Text.assemble(("Ctrl-C", "bold"), " stops"))
        self.terminal.print()
        if not self._quiet:
            head = f"{'time (UTC)':<13} {'station':<16} {'verdict':<9}  {'score':>7}   {'threshold':<9} {'latency':>9}"
            self.terminal.print(head, style="dim")
        self._thread.start()

    def result(self, result: ResultOut) -> None:
        """Take note of a result. Returns at once."""
        self._verdicts[result.verdict] += 1
        self._latencies.append(result.processing_times.total_s)
        if not self._quiet:
            try:
                self._lines.put_nowait(result)
            except queue.Full:
                self._left_out += 1

    def _print_results(self) -> None:
        while (result := self._lines.get()) is not None:
            self.terminal.print(_result_line(result))
            if self._left_out and self._lines.empty():
                self.terminal.print(f"({self._left_out} results not shown: the terminal is too slow)", style="yellow")
                self._left_out = 0

    def stopping(self) -> None:
        """A stop was asked for."""
        self.terminal.print("\nstopping: finishing what is under way …")

    def summary(self, service: Service) -> None:
        """What this run did. After `Service.stop`."""
        if self._thread.is_alive():
            self._lines.put(None)
            self._thread.join(5)
        judged = sum(self._verdicts.values())
        counts = ", ".join(f"{self._verdicts[verdict]} {verdict}" for verdict in SHOWN)
        self.terminal.print(Text.assemble((f"{judged} results", "bold"), f": {counts}"))
        if len(self._latencies) > 1:
            cuts = statistics.quantiles(self._latencies, n=100)
            self.terminal.print(f"latency: median {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms")
        if waiting := service.outbox_left:
            self.terminal.print(f"{waiting} messages wait in the outbox for the next start", style="yellow")
        self.terminal.print(f"state kept in {service.config.store.path}")
        sys.stdout.flush()


def _addresses(config: Config, http_url: str) -> list[tuple[str, str]]:
    mqtt = config.mqtt
    user = f" -u {mqtt.username} -P PASSWORD" if mqtt.username else ""
    return [
        ("page", f"{http_url}/"),
        ("verdicts", f"mosquitto_sub -h {mqtt.host} -p {mqtt.port}{user} -v -t '{mqtt.prefix}/+/result'"),
        ("metrics", f"{http_url}/metrics"),
        ("health", f"{http_url}/readyz"),
    ]


def _result_line(result: ResultOut) -> Text:
    word, style = SHOWN[result.verdict]
    time = result.created_at.strftime("%H:%M:%S.%f")[:-3]
    if result.score is None:
        figures = f"{result.reason}: {result.detail}" if result.detail else str(result.reason)
    else:
        relation = "≤" if result.verdict == "pass" else ">"
        figures = f"{result.score:>7.4f} {relation} {result.threshold:<9.4f} {result.processing_times.total_s * 1e3:>6.1f} ms"
    return Text.assemble(f"{time:<13} {result.station:<16} ", (word, style), f"  {figures}")
