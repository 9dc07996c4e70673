"""What of a configuration is more open than it had better be: told by `aprilcam check`, in the log at the start and in
/api/status."""

from config.schema import Config
from connectors.secret import is_open_to_others
from daemon.web.guard import is_loopback


def exposures(config: Config) -> list[str]:
    """One line each, none where all is well."""
    mqtt, tls = config.mqtt, config.mqtt.tls
    found = []
    if tls is not None and not tls.check_hostname:
        found.append(
            "mqtt.tls.check_hostname: off, so that any certificate of that CA passes for the broker's. "
            "Have the broker's made for its name, and leave the key out"
        )
    if tls is None and mqtt.password_file is not None and not is_loopback(mqtt.host):
        found.append("mqtt.password_file: the password crosses the network unencrypted. Use [mqtt.tls]")
    secrets = {"mqtt.password_file": mqtt.password_file, "http.token_file": config.http.token_file}
    secrets["http.users_file"] = config.http.users_file
    if tls is not None:
        secrets |= {"mqtt.tls.key_file": tls.key_file, "mqtt.tls.key_password_file": tls.key_password_file}
        if tls.key_file is None:
            secrets["mqtt.tls.certificate_file"] = tls.certificate_file  # it holds the key, too
    found += [
        f"{key}: every user of this machine can read {file}. Make it mode 0600 or 0640, owned by the daemon's user"
        for key, file in secrets.items()
        if file is not None and is_open_to_others(file)
    ]
    return found
