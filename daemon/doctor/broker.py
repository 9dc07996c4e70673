"""The broker: reached, TLS agreed on, let in. By a real CONNECT under another client id than the daemon's."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from config.errors import MqttError
from config.schema import CREDENTIALS, MqttConfig
from connectors.mqtt import MqttConnection
from connectors.tls import expiry_of, tls_use
from daemon.doctor.finding import Finding, Situation

_ANSWER_S = 8.0
_RENEW_BEFORE = timedelta(days=14)


def look_at_broker(situation: Situation) -> Iterator[Finding]:
    """With the configured credentials. Nothing is published or subscribed to, and no will is left."""
    if situation.config is None:
        yield Finding("skipped", "no configuration names a broker")
        return
    mqtt = situation.config.mqtt
    if unseen := _unseen_credential(mqtt):
        mend = "Stop the daemon's unit and name a readable file for a moment, or look at broker.trouble in /api/status"
        yield Finding("skipped", f"{unseen} is a credential of the unit, which only the daemon can read", mend)
        return
    client_id = f"aprilcam-doctor-{secrets.token_hex(3)}"
    try:
        connection = MqttConnection(mqtt.model_copy(update={"client_id": client_id}), None, lambda *_: None, lambda _: None)
        connection.open(_ANSWER_S)
    except MqttError as error:
        found, _, mend = str(error).rpartition(". ")
        yield Finding("fail", found, mend.rstrip("."))
        return
    limit = connection.maximum_packet_bytes
    connection.close()
    tls = {"off": "no TLS", "verified": "TLS, verified", "hostname_not_checked": "TLS, host name not checked"}[tls_use(mqtt)]
    largest = f"packets of up to {limit} bytes" if limit is not None else "packets of any size"
    who = mqtt.username or "nobody"
    yield Finding("ok", f"broker {mqtt.host}:{mqtt.port}: MQTT {mqtt.protocol}, {tls}, let in as {who}, {largest}")
    certificate = mqtt.tls.certificate_file if mqtt.tls is not None else None
    expiry = expiry_of(certificate) if certificate is not None else None
    if expiry is not None and expiry < datetime.now(UTC) + _RENEW_BEFORE:
        yield Finding("warn", f"{certificate} expires on {expiry:%Y-%m-%d %H:%M} UTC", "Renew it; no restart is needed")


def _unseen_credential(mqtt: MqttConfig) -> str | None:
    tls = mqtt.tls
    files = (mqtt.password_file, *((tls.key_file, tls.key_password_file) if tls is not None else ()))
    for file in files:
        if file is not None and file.parent == CREDENTIALS:
            try:
                file.open("rb").close()
            except OSError:
                return str(file)
    return None
