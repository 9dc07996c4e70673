"""The error tree of config, connectors and daemon; model has its own, so that it can be lifted out (`model/errors.py`).

AprilcamError
├── ConfigError     mend the configuration file and start again (exit 2)
├── StoreError      mend the state folder (permission, disk) and start again (exit 2)
├── AddressError    mend [http] (its port is taken) and start again (exit 2)
├── ResultsError    name another file or folder for what `aprilcam evaluate` finds, or remove the old one (exit 2)
├── CommandError    tell the sender of a command; `code` says what can be done (exit 2 at the command line)
├── RecipeFileError  give up on this exported recipe; it names the entry that is wrong
├── PictureError    give up on this picture, go on with the others
├── StoppingError   the daemon is stopping: ask again when it runs
├── ArchiveError    give up on this archived result (never kept, given up since, or damaged), take another
├── TriggerError    the camera took no trigger, so no result follows: see the station's state, try again
├── MqttError       the broker is not usable now; the publisher tries again with back-off
└── CameraError     the device is not usable now; the supervisor tries again with back-off
    └── CameraFinished  a folder that plays once has no more pictures; nothing to try again
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class AprilcamError(Exception):
    """Base of every error raised on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a configuration: the key (dotted, as in `cameras.0.rate_hz`), the reason and the mend."""

    key: str
    reason: str
    mend: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}. {self.mend}"


class ConfigError(AprilcamError):
    """A configuration that cannot be run, with every problem found in it."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


class StoreError(AprilcamError):
    """The state folder cannot be used."""


class AddressError(AprilcamError):
    """The HTTP address cannot be bound."""


class ResultsError(AprilcamError):
    """A file or folder of an evaluation that cannot be written, or that holds another evaluation's results."""


class CommandError(AprilcamError):
    """A command that was not done."""

    def __init__(self, code: str, message: str) -> None:
        """`code` is one of `connectors.requests.Code`."""
        super().__init__(message)
        self.code = code


class RecipeFileError(AprilcamError):
    """An exported recipe that is not whole, or not what it says."""


class PictureError(AprilcamError):
    """A picture file that cannot be read or does not fit its recipe."""


class StoppingError(AprilcamError):
    """The daemon is stopping and begins nothing new."""


class ArchiveError(AprilcamError):
    """A result that is not in the archive, or whose files there cannot be read."""


class CameraError(AprilcamError):
    """A camera that cannot be opened or has stopped delivering."""


class CameraFinished(CameraError):
    """A folder that plays once has shown its last picture."""


class TriggerError(AprilcamError):
    """A trigger that was not taken; no result will follow."""


class MqttError(AprilcamError):
    """The broker cannot be reached or refused us; the publisher tries again with back-off."""
