"""`aprilcam user`: a line for the users file of the page."""

import getpass
import sys

from config.errors import CommandError
from daemon.web.users import NAME, Role, hash_password

LEAST, MOST = 10, 256


def make_user(name: str, role: Role) -> str:
    """The line, for a password asked for without echo, or of the first line of stdin where that is no terminal. Raises
    CommandError."""
    if not NAME.fullmatch(name):
        raise CommandError("refused", f"{name[:80]!r} cannot be a name: letters, digits and `_.@-`, at most 64")
    password = _ask() if sys.stdin.isatty() else sys.stdin.readline(MOST + 2).rstrip("\r\n")
    if not LEAST <= len(password) <= MOST:
        raise CommandError("refused", f"a password of {len(password)} characters, expected {LEAST} to {MOST}. Choose another")
    return f"{name}:{role}:{hash_password(password)}"


def show_user(name: str, role: Role) -> None:
    """Print the line, and where it goes. Raises CommandError."""
    line = make_user(name, role)
    print(line)
    print("Append this line to the file of [http] users_file (mode 0640), and restart the daemon.", file=sys.stderr)


def _ask() -> str:
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise CommandError("refused", "the two passwords differ. Try again")
    return password
