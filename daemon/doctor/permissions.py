"""The configuration, and who may read and write what belongs to the daemon."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from config.schema import CREDENTIALS, Config
from daemon.doctor.finding import AS_DAEMON, Finding, Situation
from daemon.exposure import exposures


def look_at_configuration(situation: Situation) -> Iterator[Finding]:
    """Whether it can be run; each problem on its own."""
    if situation.trouble is not None:
        for problem in situation.trouble.problems:
            yield Finding("fail", f"{situation.trouble.path.name}: {problem.key}: {problem.reason}", problem.mend)
    elif situation.config is None:
        mend = "Name one with --config to have more checked"
        yield Finding("ok", "none: the machine alone is looked at", mend)
    else:
        config = situation.config
        yield Finding("ok", f"{situation.config_path}: valid; stations: {len(config.stations)}, cameras: {len(config.cameras)}")


def look_at_permissions(situation: Situation) -> Iterator[Finding]:
    """State folder, configuration file and secrets."""
    config, path = situation.config, situation.config_path
    if config is None or path is None:
        yield Finding("skipped", "no configuration names the daemon's files")
        return
    found = [*_state_folder(config.store.path), *_changeable(path), *_secrets(config)]
    found += [Finding("warn", *_split(exposure)) for exposure in exposures(config)]
    yield from found or [Finding("ok", f"{config.store.path}, {path} and the secrets are for the daemon and its group alone")]


def _split(text: str) -> tuple[str, str]:
    found, _, mend = text.rpartition(". ")
    return found, mend


def _state_folder(folder: Path) -> Iterator[Finding]:
    try:
        mode = folder.stat().st_mode
    except FileNotFoundError:
        parent = folder.parent
        while not parent.exists():
            parent = parent.parent
        if not os.access(parent, os.W_OK):
            yield Finding("warn", f"{folder} is not there, and this user may not make it", "systemd makes it, as the unit says")
        return
    except OSError as error:
        yield Finding("warn", f"{folder}: {error.strerror}", AS_DAEMON)
        return
    if not stat.S_ISDIR(mode):
        yield Finding("fail", f"{folder} is not a folder", "Set [store] path to a folder")
    elif mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        yield Finding("fail", f"every user of this machine may change {folder}", f"chmod 0750 {folder}")
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("warn", f"this user may not write to {folder}", AS_DAEMON)
    elif mode & (stat.S_IROTH | stat.S_IXOTH):
        yield Finding("warn", f"every user of this machine may look into {folder}", f"chmod 0750 {folder}")


def _changeable(path: Path) -> Iterator[Finding]:
    if path.stat().st_mode & stat.S_IWOTH:
        yield Finding("fail", f"every user of this machine may change {path}", f"chmod 0640 {path}")


def _secrets(config: Config) -> Iterator[Finding]:
    mqtt, tls = config.mqtt, config.mqtt.tls
    files = {"mqtt.password_file": mqtt.password_file, "http.token_file": config.http.token_file}
    files["http.users_file"] = config.http.users_file
    if tls is not None:
        files |= {"mqtt.tls.key_file": tls.key_file, "mqtt.tls.key_password_file": tls.key_password_file}
    for key, file in files.items():
        if file is not None and file.parent != CREDENTIALS and not os.access(file, os.R_OK):
            yield Finding("warn", f"{key}: this user may not read {file}", "The daemon must: chown aprilcam: and chmod 0600")
