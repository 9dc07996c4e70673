"""The page of the machine and the daemon: what is wrong first, then each part, and the doctor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from daemon.overview import Fact, Told
from daemon.web.access import Access, Endpoint
from daemon.web.examiner import Examiner
from daemon.web.html import Html
from daemon.web.moments import plant_and_utc

_RANK = {"fail": 0, "warn": 1, "skipped": 3}
_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))


@dataclass(frozen=True)
class Shown:
    """A fact as text. word: it is the name of a text. utc: of a time."""

    name: str
    value: str
    word: bool = False
    utc: str = ""


class SystemPage:
    """See, and have examined."""

    def __init__(self, html: Html, told: Told, doctor: Sequence[str]) -> None:
        self._html = html
        self._told = told
        self.examiner = Examiner(doctor)

    def shown(self) -> Mapping[str, Endpoint]:
        """What a viewer may see, by path."""
        return {"/system": self._page, "/system/now": self._now}

    def routes(self, access: Access) -> Sequence[Route]:
        """What only an engineer may see (it names files of secrets) and do."""
        return [
            access.route("/system/doctor", self._doctor, role="engineer"),
            access.route("/system/doctor", self._examine, role="engineer", methods=["POST"]),
        ]

    def _page(self, request: Request) -> Response:
        return self._html.page(request, "system.html", **self._overview(request), **self._examination())

    def _now(self, request: Request) -> Response:
        """The part of the page that is refreshed."""
        return self._html.page(request, "system_now.html", **self._overview(request))

    def _doctor(self, request: Request) -> Response:
        """The doctor's part of the page."""
        return self._html.page(request, "system_doctor.html", **self._examination())

    def _examine(self, request: Request) -> Response:
        """409 while it runs already."""
        begun = self.examiner.begin()
        answer = self._html.page(request, "system_doctor.html", **self._examination())
        answer.status_code = 202 if begun else 409
        return answer

    def _overview(self, request: Request) -> dict[str, object]:
        overview = self._told()
        engineer = request.state.visitor.role == "engineer"
        parts = [
            (part.kind, part.title, [shown(name, value) for name, value in part.facts.items() if value is not None])
            for part in overview.parts
        ]
        return {
            "troubles": [own for own in overview.troubles if engineer or not own.files],
            "parts": parts,
            "starting": overview.starting,
        }

    def _examination(self) -> dict[str, object]:
        last = self.examiner.last
        findings = sorted(last.findings, key=lambda finding: _RANK.get(finding["status"], 2))
        return {"examination": last, "findings": findings, "begun": shown("begun", last.begun) if last.begun else None}


def shown(name: str, value: Fact) -> Shown:
    """As people read it, by the unit that ends its name. Times are the plant's."""
    if name == "simulated" and value:
        return Shown(name, "no_camera", word=True)
    if isinstance(value, bool):
        return Shown(name, "yes" if value else "no", word=True)
    if isinstance(value, datetime):
        at, utc = plant_and_utc(value)
        return Shown(name, at, utc=utc)
    if isinstance(value, int | float):
        if name.endswith("_bytes"):
            return Shown(name, size(value))
        if name.endswith("_s"):
            return Shown(name, duration(value))
        if name.endswith("_hz"):
            return Shown(name, f"{value:.1f} /s")
        if name.endswith("_c"):
            return Shown(name, f"{value:.0f} °C")
        return Shown(name, f"{value}")
    return Shown(name, str(value), word=name in ("tls", "status"))


def size(count: float) -> str:
    """1500 -> 1.5 kB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1_000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1_000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """93784 -> 1 d 2 h; 0.004 -> 4 ms."""
    if 0 < seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < _UNITS[-1][0]:
        return f"{seconds:.0f} s"
    for (length_s, unit), (smaller_s, smaller) in zip(_UNITS, (*_UNITS[1:], (1.0, "s")), strict=True):
        if seconds >= length_s:
            whole, rest = divmod(seconds, length_s)
            return f"{whole:.0f} {unit}" + (f" {rest // smaller_s:.0f} {smaller}" if rest >= smaller_s else "")
    raise AssertionError(seconds)
