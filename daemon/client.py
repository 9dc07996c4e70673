"""The command line's way to a running daemon: its HTTP API. Where none runs, the state folder is worked on here."""

import fcntl
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from config.errors import CommandError
from config.schema import Config, HttpConfig, load_config
from connectors.requests import MAX_RECIPE_BYTES, MAX_WAIT_S, most_attached
from daemon.web.guard import read_token

ANSWER_S = 30.0
MAX_ANSWER_BYTES = MAX_RECIPE_BYTES + (1 << 20)
SLOWEST_BYTES_S = 1 << 20
"""A recipe file is checked, and its pictures are stored, at this rate or faster."""


class Runner(Protocol):
    """What does a command: a running daemon, or this process."""

    def run(self, name: str, request: Mapping[str, Any], attachment: bytes | None = None) -> dict[str, Any]:
        """The answer. Raises CommandError."""

    def export(self, recipe: str) -> bytes:
        """The recipe as one file. Raises CommandError."""


class Client:
    """One daemon's HTTP API."""

    def __init__(self, config: HttpConfig, token: bytes | None) -> None:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104 - where it listens, not us
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
        self._headers = {"Authorization": f"Bearer {token.decode()}"} if token is not None else {}
        # The daemon is asked itself, whatever proxy the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def run(self, name: str, request: Mapping[str, Any], attachment: bytes | None = None) -> dict[str, Any]:
        """The daemon's answer. Raises CommandError with the daemon's own code and message, or why there is no answer."""
        if attachment is not None and len(attachment) > (most := most_attached(name)):
            raise CommandError("too_large", f"{len(attachment)} bytes, at most {most}")
        address = f"{self.url}/api/commands/{name}"
        headers = {**self._headers, "Content-Type": "application/json"}
        body = json.dumps(dict(request)).encode()
        if attachment is not None:
            fields = {key: "true" if value is True else value for key, value in request.items() if value is not False}
            address, body = f"{address}?{urlencode(fields)}", attachment
            headers["Content-Type"] = "application/octet-stream"
        wait_s = ANSWER_S + float(request.get("timeout_s", MAX_WAIT_S)) * int(request.get("next") or 1)
        wait_s += len(attachment or b"") / SLOWEST_BYTES_S
        answer = self._answer(urllib.request.Request(address, body, headers, method="POST"), wait_s)  # noqa: S310 - http
        try:
            return _object(answer)
        except ValueError as error:
            raise self._silent(error) from None

    def export(self, recipe: str) -> bytes:
        """The recipe as one file. Raises CommandError as `run` does."""
        call = urllib.request.Request(f"{self.url}/api/recipes/{quote(recipe, safe='')}/export", headers=self._headers)  # noqa: S310
        return self._answer(call, ANSWER_S + MAX_RECIPE_BYTES / SLOWEST_BYTES_S)

    def status(self) -> dict[str, Any]:
        """How the daemon is, as GET /api/status tells. Raises CommandError as `run` does."""
        return _object(self._answer(urllib.request.Request(f"{self.url}/api/status"), ANSWER_S))  # noqa: S310 - http

    def _answer(self, call: urllib.request.Request, wait_s: float) -> bytes:
        """What the configured address answers."""
        try:
            with self._opener.open(call, timeout=wait_s) as answer:
                return bytes(answer.read(MAX_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.read(64 << 10), self.url, error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._silent(error) from None

    def _silent(self, error: Exception) -> CommandError:
        reason = getattr(error, "reason", error)
        mend = "Is it still starting? Check [http] host and port of the configuration"
        return CommandError("busy", f"the daemon at {self.url} gave no answer: {reason}. {mend}")


def _object(payload: bytes) -> dict[str, Any]:
    answer = json.loads(payload)
    if not isinstance(answer, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - said as any other answer that makes no sense
    return answer


def _refusal(payload: bytes, url: str, status: int) -> CommandError:
    try:
        told = _object(payload)["error"]
        return CommandError(str(told["code"]), str(told["message"]))
    except (ValueError, KeyError, TypeError):
        return CommandError("failed", f"{url} answered with HTTP status {status}: is it an aprilcam? Check [http] port")


def daemon_runs(store: Path) -> bool:
    """Whether a daemon has the state folder, which its lock says; yes where we may not even look."""
    try:
        lock = os.open(store / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


@contextmanager
def connect(config_path: Path) -> Iterator[Runner]:
    """Whatever does commands for this configuration now. Raises ConfigError, StoreError, CommandError, ModelError."""
    config = load_config(config_path)
    if daemon_runs(config.store.path):
        yield _client(config, config_path)
        return
    # Imported late: a running daemon answers without waiting for what this needs.
    from daemon.offline import open_state

    with open_state(config, config_path.resolve().parent) as runner:
        yield runner


def _client(config: Config, config_path: Path) -> Client:
    if config.http.port == 0:
        raise CommandError("refused", f"{config_path}: [http] port is 0, expected a fixed one to find the running daemon by")
    return Client(config.http, read_token(config.http, config_path))
