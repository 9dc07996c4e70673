"""daemon/exposure.py: what is told of a configuration that is open."""

from pathlib import Path

import pytest

from config.schema import Config
from daemon.exposure import exposures
from tests.test_schema import GOOD, load


def of(tmp_path: Path, section: str) -> list[str]:
    config: Config = load(tmp_path, f"{section}\n{GOOD}")
    return [exposure.partition(":")[0] for exposure in exposures(config)]


@pytest.mark.parametrize(
    ("mode", "told"), [(0o600, False), (0o640, False), (0o644, True), (0o660, True), (0o602, True)], ids=lambda value: str(value)
)
def test_a_secret_that_others_can_read_or_change_is_told(tmp_path: Path, mode: int, told: bool) -> None:
    for name in ("token", "password", "key", "certificate"):
        (tmp_path / name).write_text("x")
        (tmp_path / name).chmod(mode)
    http, login = "[http]\ntoken_file = 'token'", "[mqtt]\nusername = 'x'\npassword_file = 'password'"
    tls = "[mqtt.tls]\ncertificate_file = 'certificate'\nkey_file = 'key'\nkey_password_file = 'password'"
    keys = ["mqtt.password_file", "http.token_file", "mqtt.tls.key_file", "mqtt.tls.key_password_file"]
    assert of(tmp_path, f"{http}\n{login}\n{tls}") == (keys if told else [])
    # A certificate is no secret, unless the key is in its file.
    assert of(tmp_path, "[mqtt.tls]\ncertificate_file = 'certificate'") == (["mqtt.tls.certificate_file"] if told else [])


def test_a_name_that_is_not_checked_and_a_password_in_the_open_are_told(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("x")
    (tmp_path / "password").chmod(0o600)
    login = "[mqtt]\nusername = 'x'\npassword_file = 'password'\nhost = "
    assert of(tmp_path, f"{login}'127.0.0.1'") == []
    assert of(tmp_path, f"{login}'broker.example'") == ["mqtt.password_file"]
    assert of(tmp_path, f"{login}'broker.example'\n[mqtt.tls]") == []
    assert of(tmp_path, f"{login}'broker.example'\n[mqtt.tls]\ncheck_hostname = false") == ["mqtt.tls.check_hostname"]
