"""Secrets that lie in files: a password is the first line of one."""

import stat
from pathlib import Path

from config.errors import MqttError


def first_line(file: Path, what: str) -> str:
    """The secret. Raises MqttError, which names the file and never what is in it."""
    try:
        return (file.read_text(encoding="utf-8").splitlines() or [""])[0]
    except OSError as error:
        raise MqttError(f"{what} {file}: {error.strerror}. Make it readable to the daemon.") from None
    except UnicodeDecodeError:
        raise MqttError(f"{what} {file}: not UTF-8 text. Write the password as its first line.") from None


def is_open_to_others(file: Path) -> bool:
    """Whether every user of this machine may read or change it; the group may read. False where it cannot be seen."""
    try:
        return bool(file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP))
    except OSError:
        return False
