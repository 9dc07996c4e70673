"""Who may change something over HTTP.

With a token file every such request carries the token. Without one only a loopback address is served, where any local
program may command; but not a page that a browser on this machine shows: it would send its own Origin, or, after DNS
rebinding, a Host that is not ours.
"""

import hmac
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request

from config.errors import ConfigError, Problem
from config.schema import HttpConfig

MIN_TOKEN = 16


@dataclass(frozen=True)
class Refusal:
    """HTTP status, code and message."""

    status: int
    code: str
    message: str


class Guard:
    """Decides from a request's headers alone."""

    def __init__(self, config: HttpConfig, config_path: Path) -> None:
        """Raises ConfigError when the token file cannot be used."""
        self._token = read_token(config, config_path)
        self._loopback = is_loopback(config.host)

    def refusal(self, request: Request) -> Refusal | None:
        """Why the request may not change anything, None when it may."""
        if self._token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token):
                return None
            return Refusal(
                401, "unauthorized", "expected the header `Authorization: Bearer TOKEN` with [http] token_file's token"
            )
        if not self._loopback:
            mend = "Set [http] token_file, or [http] host to 127.0.0.1"
            return Refusal(403, "forbidden", f"no token is configured, and [http] host is not a loopback address. {mend}")
        host = request.headers.get("host", "")
        if not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return Refusal(403, "forbidden", f"Host {host[:80]!r} is not this machine's loopback address")
        origin = request.headers.get("origin")
        if origin is not None and origin != f"{request.url.scheme}://{host}":
            return Refusal(403, "forbidden", f"a page of {origin[:80]!r} may not command this daemon")
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return Refusal(403, "forbidden", "another site's page may not command this daemon")
        return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_token(config: HttpConfig, config_path: Path) -> bytes | None:
    """The first line of the token file, None where none is configured. Raises ConfigError."""
    file = config.token_file
    if file is None:
        return None
    try:
        token = file.read_text(encoding="ascii").partition("\n")[0].strip()
    except OSError as error:
        problem = Problem("http.token_file", f"{file}: {(error.strerror or str(error)).lower()}", "Make it readable to you")
        raise ConfigError(config_path, [problem]) from None
    except UnicodeDecodeError:
        token = ""
    if len(token) < MIN_TOKEN:
        mend = "Write a long random one, as `openssl rand -hex 32` makes it, as its first line"
        reason = f"{file}: no token of {MIN_TOKEN} ASCII characters or more"
        raise ConfigError(config_path, [Problem("http.token_file", reason, mend)])
    return token.encode()
