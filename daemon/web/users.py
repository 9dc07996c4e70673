"""Who may log in to the page: the users file, and how passwords are kept in it.

One line a user, `name:role:scrypt$N$r$p$salt$hash` (salt and hash in base64; scrypt as in RFC 7914), as `aprilcam user` prints
it. Empty lines and lines that begin with `#` are skipped.
"""

import base64
import hashlib
import hmac
import re
import secrets
import unicodedata
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from config.errors import ConfigError, Problem
from config.schema import HttpConfig

Role = Literal["viewer", "engineer"]
ROLES: tuple[Role, ...] = get_args(Role)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
MEND = "Make the line anew with `aprilcam user NAME --role viewer` (or engineer)"
COST = (1 << 15, 8, 3)
"""N, r, p: 32 MiB and about a quarter of a second, so that a stolen file is not soon guessed."""
MOST_MEMORY = 128 << 20
MOST_WORK = 1 << 22
"""Of N * r * p; a line over it would hold up every login."""


@dataclass(frozen=True)
class Secret:
    """A password, hashed."""

    n: int
    r: int
    p: int
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    def is_of(self, password: str) -> bool:
        """Whether it is this password. Takes long: on a thread."""
        return hmac.compare_digest(_digest(password, self.salt, self.n, self.r, self.p), self.digest)

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).decode() for part in (self.salt, self.digest))
        return f"scrypt${self.n}${self.r}${self.p}${salt}${digest}"


@dataclass(frozen=True)
class User:
    """One line of the file."""

    name: str
    role: Role
    secret: Secret


def hash_password(password: str) -> Secret:
    """With a new salt. Takes long."""
    salt = secrets.token_bytes(16)
    return Secret(*COST, salt, _digest(password, salt, *COST))


def read_users(config: HttpConfig, config_path: Path) -> dict[str, User] | None:
    """By name; None where no file is configured. Raises ConfigError with one problem, which never shows a hash."""
    file = config.users_file
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise _wrong(config_path, f"{file}: {(error.strerror or str(error)).lower()}", "Make it readable to the daemon") from None
    except UnicodeDecodeError:
        raise _wrong(config_path, f"{file}: not UTF-8", MEND) from None
    users: dict[str, User] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            user = _parse(line.strip(), users)
        except ValueError as error:
            raise _wrong(config_path, f"{file}, line {number}: {error}", MEND) from None
        users[user.name] = user
    if not users:
        raise _wrong(config_path, f"{file}: nobody stands in it", "Append what `aprilcam user NAME --role engineer` prints")
    return users


def _parse(line: str, before: Container[str]) -> User:
    """Raises ValueError with a reason that shows nothing of the line: whoever errs may have written a password there."""
    name, _, rest = line.partition(":")
    role, _, kept = rest.partition(":")
    if not NAME.fullmatch(name):
        raise ValueError("expected a name of letters, digits and `_.@-`, at most 64, then `:`")
    if name in before:
        raise ValueError("the name stands there twice")
    known = next((one for one in ROLES if one == role), None)
    if known is None:
        raise ValueError("expected the role viewer or engineer after the name")
    match = re.fullmatch(r"scrypt\$(\d{1,8})\$(\d{1,3})\$(\d{1,3})\$([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+)", kept)
    if match is None:
        raise ValueError("expected scrypt$N$r$p$salt$hash after the role")
    n, r, p = (int(part) for part in match.groups()[:3])
    # Too weak to keep, or so dear that a login would hold up the others.
    if n < 1 << 14 or n & (n - 1) or not 8 <= r <= 32 or p < 1 or 128 * n * r >= MOST_MEMORY or n * r * p > MOST_WORK:
        raise ValueError("N, r or p out of bounds: N a power of two from 16384, r from 8, under 128 MiB")
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in match.groups()[3:])
    except ValueError:
        raise ValueError("salt or hash is not base64") from None
    if len(salt) < 16 or len(digest) != 32:
        raise ValueError("expected a salt of 16 bytes or more and a hash of 32")
    return User(name, known, Secret(n, r, p, salt, digest))


def _digest(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    # One keyboard writes an umlaut as one character, another as two.
    text = unicodedata.normalize("NFC", password).encode("utf-8", "replace")
    return hashlib.scrypt(text, salt=salt, n=n, r=r, p=p, maxmem=2 * MOST_MEMORY, dklen=32)


def _wrong(config_path: Path, reason: str, mend: str) -> ConfigError:
    return ConfigError(config_path, [Problem("http.users_file", reason, mend)])
