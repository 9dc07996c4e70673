"""The one HTTP port: /metrics, /healthz, /readyz, and what is mounted beside them (/api)."""

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from config.errors import AddressError
from config.schema import HttpConfig

Health = Callable[[], tuple[bool, dict[str, Any]]]
"""(is all well, detail as JSON)."""


def create_app(metrics: Callable[[], bytes], alive: Health, ready: Health, beside: Sequence[BaseRoute] = ()) -> Starlette:
    """The application. `alive` asks whether the process works, `ready` whether every station can give verdicts; `beside` is
    what else the port serves."""

    def show_metrics(_: Request) -> Response:
        return Response(metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def answer(health: Health) -> Callable[[Request], Response]:
        def show(_: Request) -> Response:
            well, detail = health()
            return JSONResponse(detail, status_code=200 if well else 503)

        return show

    return Starlette(
        routes=[
            Route("/metrics", show_metrics),
            Route("/healthz", answer(alive)),
            Route("/readyz", answer(ready)),
            *beside,
        ]
    )


class HttpServer:
    """uvicorn in a thread of its own, on a socket that is bound at once so that a taken port is an error at the start."""

    def __init__(self, config: HttpConfig, app: Starlette) -> None:
        """Raises AddressError when host and port cannot be bound."""
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((config.host, config.port))
        except OSError as error:
            self._socket.close()
            mend = "Stop what uses it, or set [http] port to a free one (0 chooses one)"
            raise AddressError(f"HTTP {config.host}:{config.port}: {error.strerror or error}. {mend}.") from None
        host = f"[{config.host}]" if family == socket.AF_INET6 else config.host
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()
