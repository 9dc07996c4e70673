"""What stands in for the console where nobody watches (the journal, JSON): the same, in the log."""

import logging
from types import TracebackType

from connectors.contract import ResultOut
from daemon.service import Service

log = logging.getLogger(__name__)


class Unwatched:
    """Logs the start and the end. Results are not logged: the ledger and the broker have them."""

    def __init__(self) -> None:
        self._results = 0

    def __enter__(self) -> "Unwatched":
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        pass

    def progress(self, what: str, done: int, total: int) -> None:
        """A step of the start-up, at its end."""
        if done == total:
            log.info("%s: done", what)

    def started(self, service: Service) -> None:
        """Each station with what keeps it from inspecting well."""
        for view in service.health.views():
            for note in filter(None, (view.reason, view.advice)):
                log.warning("station %s: %s", view.station, note)
        log.info("inspecting; %s/readyz tells how it is", service.http_url)

    def result(self, _result: ResultOut) -> None:
        """On the ledger's thread."""
        self._results += 1

    def stopping(self) -> None:
        """A stop was asked for."""
        log.info("stopping: finishing what is under way")

    def summary(self, service: Service) -> None:
        """After the stop."""
        log.info("stopped after %d results; %d messages wait in the outbox", self._results, service.outbox_left)
