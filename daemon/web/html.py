"""How each page of the daemon is made: its templates, its texts, its styles and scripts."""

import tomllib
from importlib.resources import files
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from daemon.web.access import Visitor

MEDIA_TYPES = {"css": "text/css", "js": "text/javascript"}


class Html:
    """What lies in templates/, static/ and texts.toml, read once."""

    def __init__(self) -> None:
        here = files("daemon.web")
        self._texts = tomllib.loads((here / "texts.toml").read_text(encoding="utf-8"))
        self._static = {file.name: file.read_bytes() for file in (here / "static").iterdir()}
        self._templates = jinja2.Environment(
            loader=jinja2.FunctionLoader(lambda name: (here / "templates" / name).read_text(encoding="utf-8")),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        # Compiled now: while parts are judged, whoever comes first would cost them that.
        self._pages = {file.name: self._templates.get_template(file.name) for file in (here / "templates").iterdir()}

    def page(self, request: Request, template: str, **shown: Any) -> Response:
        """A template with its texts, for the visitor who asks."""
        visitor: Visitor = request.state.visitor
        return HTMLResponse(self._pages[template].render(text=self._texts, visitor=visitor, **shown))

    def file(self, name: str) -> Response:
        """A style or a script."""
        if name not in self._static:
            return PlainTextResponse("no such file\n", status_code=404)
        return Response(self._static[name], media_type=MEDIA_TYPES[name.rpartition(".")[2]])
