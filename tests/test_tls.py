"""connectors/tls.py: a real mosquitto with TLS, certificates of the test's own."""

import json
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.errors import MqttError
from config.schema import MqttConfig
from connectors.contract import Topics
from connectors.mqtt import MqttConnection
from connectors.tls import CertificateWatch, expiry_of, trouble_of
from daemon.announcer import Announcer
from daemon.losses import Losses
from daemon.mqtt_commands import MqttCommands
from demo.run import free_port
from tests.broker import Broker, Listener, wait_for
from tests.certificates import Authority
from tests.plant import MakePlant
from tests.records import entry
from tests.sending import Daemon, numbers


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


class Secured:
    """A broker that speaks TLS, and plainly on another port, where the test listens."""

    def __init__(self, folder: Path, ca: Authority, *tls: str, names: str = "IP:127.0.0.1", days: int = 2) -> None:
        certificate, key = ca.issue("broker", names=names, days=days)
        self.plain_port = free_port()
        self.log = folder / "mosquitto.log"
        lines = (f"cafile {ca.file}", f"certfile {certificate}", f"keyfile {key}", *tls, f"listener {self.plain_port} 127.0.0.1")
        self.broker = Broker(folder, *lines, "allow_anonymous true", f"log_dest file {self.log}", "log_type all")
        self.broker.start()

    def attempt(self, **tls: object) -> str | None:
        """Connect once; why it did not work, None where it did."""
        settings = MqttConfig.model_validate({"port": self.broker.port, "client_id": "daemon", "tls": tls})
        try:
            connection = MqttConnection(settings, ("t", b""), lambda *_: None, lambda _: None)
            connection.open(5.0)
        except MqttError as error:
            return str(error)
        connection.close()
        return None


Secure = Callable[..., Secured]


@pytest.fixture
def secure(tmp_path: Path, ca: Authority) -> Iterator[Secure]:
    """Starts a broker."""
    started: list[Secured] = []

    def secure(*tls: str, **certificate: Any) -> Secured:
        started.append(Secured(tmp_path, ca, *tls, **certificate))
        return started[-1]

    yield secure
    for secured in started:
        secured.broker.kill()


def test_the_broker_is_verified_by_its_ca_and_name(
    tmp_path: Path, ca: Authority, secure: Secure, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured = secure()
    assert secured.attempt(ca_file=ca.file) is None
    told = secured.attempt(ca_file=Authority(tmp_path, "other").file)
    assert told is not None
    assert f"its certificate is of no CA in {tmp_path / 'other.pem'}. Set [mqtt.tls] ca_file" in told
    told = secured.attempt()
    assert told is not None
    assert "its certificate is of no CA in this machine's trust store" in told
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.file))  # OpenSSL's own way to name the machine's trust store
    assert secured.attempt() is None
    told = secure(days=-1).attempt(ca_file=ca.file)
    assert told is not None
    assert "its certificate has expired. Renew it at the broker" in told


def test_another_name_is_refused_unless_the_check_is_turned_off(tmp_path: Path, ca: Authority, secure: Secure) -> None:
    secured = secure(names="DNS:broker.plant7.example")
    told = secured.attempt(ca_file=ca.file)
    assert told is not None
    assert "its certificate is not for the name '127.0.0.1'. Use a name of its certificate as [mqtt] host" in told
    assert secured.attempt(ca_file=ca.file, check_hostname=False) is None
    # It is the name alone that is not looked at.
    told = secured.attempt(ca_file=Authority(tmp_path, "other").file, check_hostname=False)
    assert told is not None
    assert "of no CA in" in told


@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_a_broker_that_wants_a_client_certificate_gets_it_or_says_what_it_wants(
    tmp_path: Path, ca: Authority, secure: Secure, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(_only(tmp_path, version)))
    secured = secure("require_certificate true")
    certificate, key = ca.issue("daemon")
    assert secured.attempt(ca_file=ca.file, certificate_file=certificate, key_file=key) is None
    told = secured.attempt(ca_file=ca.file)
    assert told is not None
    assert "it wants a client certificate" in told
    assert told.endswith("Set [mqtt.tls] certificate_file and key_file.")
    certificate, key = Authority(tmp_path, "other").issue("stranger")
    told = secured.attempt(ca_file=ca.file, certificate_file=certificate, key_file=key)
    assert told is not None
    assert f"it does not accept our certificate (unknown ca). Renew {certificate}" in told


def _only(folder: Path, version: str) -> Path:
    """An OpenSSL configuration under which mosquitto speaks nothing newer."""
    name = version.replace("tlsv", "TLSv")
    low = "CipherString = ALL:@SECLEVEL=0\n" if version == "tlsv1.1" else ""
    file = folder / "openssl.cnf"
    file.write_text(
        f"openssl_conf = a\n[a]\nssl_conf = b\n[b]\nsystem_default = c\n[c]\nMinProtocol = {name}\nMaxProtocol = {name}\n{low}"
    )
    return file


def test_a_broker_of_tls_1_1_is_refused(tmp_path: Path, ca: Authority, secure: Secure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENSSL_CONF", str(_only(tmp_path, "tlsv1.1")))
    secured = secure("tls_version tlsv1.1", "ciphers ALL:@SECLEVEL=0")
    monkeypatch.delenv("OPENSSL_CONF")
    old = ["openssl", "s_client", "-connect", f"127.0.0.1:{secured.broker.port}", "-CAfile", str(ca.file), "-tls1_1"]
    done = subprocess.run([*old, "-cipher", "ALL:@SECLEVEL=0"], input=b"", capture_output=True, timeout=10)
    assert b"Verify return code: 0 (ok)" in done.stdout  # an old client would have been served
    told = secured.attempt(ca_file=ca.file)
    assert told is not None
    assert "it speaks no TLS as new as 1.2. Let the broker speak TLS 1.2 or newer" in told


def test_tls_and_no_tls_do_not_meet_and_each_says_so(ca: Authority, secure: Secure) -> None:
    secured = secure()
    tls_port = secured.broker.port
    secured.broker.port = secured.plain_port
    told = secured.attempt(ca_file=ca.file)
    assert told is not None
    assert "8883 mostly" in told
    settings = MqttConfig(port=tls_port, client_id="daemon")
    with pytest.raises(
        MqttError, match=r"hung up before it answered\. Check \[mqtt\] port and protocol, and whether it wants TLS"
    ):
        MqttConnection(settings, ("t", b""), lambda *_: None, lambda _: None).open(5.0)


def test_files_that_cannot_be_used_are_told_with_the_mend_and_nothing_of_what_is_in_them(tmp_path: Path, ca: Authority) -> None:
    good, key = ca.issue("good")
    _, other_key = ca.issue("other")
    locked, locked_key = ca.issue("locked", password="open sesame")  # noqa: S106
    expired, expired_key = ca.issue("expired", days=-1)
    text = tmp_path / "text"
    text.write_text("a secret that is no PEM")
    gone = tmp_path / "gone"
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("open sesame\n")
    wrong.write_text("a secret that is wrong\n")
    broken = tmp_path / "broken"
    broken.write_text(f"{ssl.PEM_HEADER}\naGVsbG8=\n{ssl.PEM_FOOTER}\n")
    long = tmp_path / "long"
    long.write_text("x" * 2_000)
    cases = [
        ({"ca_file": broken}, f"mqtt.tls.ca_file: {broken}: not a PEM file of certificates. Put the CA's PEM file there."),
        ({"certificate_file": broken}, f"mqtt.tls.certificate_file: {broken}: its certificate cannot be read. "),
        (
            {"certificate_file": locked, "key_file": locked_key, "key_password_file": long},
            f"mqtt.tls.key_password_file: {long}: too long for a password. ",
        ),
        ({"ca_file": gone}, f"mqtt.tls.ca_file: {gone}: No such file or directory. Make it readable to the daemon."),
        ({"ca_file": text}, f"mqtt.tls.ca_file: {text}: no certificate in PEM. Put a PEM file there."),
        ({"ca_file": key}, f"mqtt.tls.ca_file: {key}: no certificate in PEM. Put a PEM file there."),
        ({"certificate_file": text, "key_file": key}, f"mqtt.tls.certificate_file: {text}: no certificate in PEM. "),
        ({"certificate_file": good, "key_file": gone}, f"mqtt.tls.key_file: {gone}: No such file or directory. "),
        ({"certificate_file": good, "key_file": text}, f"mqtt.tls.key_file: {text}: no private key in PEM. Put the"),
        ({"certificate_file": good, "key_file": other_key}, f"mqtt.tls.key_file: {other_key}: it is not the key of {good}. "),
        ({"certificate_file": good}, f"mqtt.tls.certificate_file: {good}: no private key in PEM. "),
        ({"certificate_file": locked, "key_file": locked_key}, f"{locked_key}: the key is encrypted with a password. Set key_pa"),
        (
            {"certificate_file": locked, "key_file": locked_key, "key_password_file": wrong},
            f"mqtt.tls.key_file: {locked_key}: no private key in PEM that this password opens. Check the file and",
        ),
        ({"certificate_file": expired, "key_file": expired_key}, f"mqtt.tls.certificate_file: {expired}: it expired on 20"),
    ]
    for tls, words in cases:
        settings = MqttConfig.model_validate({"tls": {"ca_file": ca.file, **tls}})
        with pytest.raises(MqttError) as caught:
            MqttConnection(settings, ("t", b""), lambda *_: None, lambda _: None)
        assert words in str(caught.value)
        assert "a secret" not in str(caught.value)
        assert settings.tls is not None
        assert trouble_of(settings.tls) == str(caught.value)
    for well in ({"certificate_file": locked, "key_file": locked_key, "key_password_file": right}, {"certificate_file": good}):
        loaded = MqttConfig.model_validate({"tls": {"key_file": key, **well}}).tls
        assert loaded is not None
        assert trouble_of(loaded) is None


def test_when_a_certificate_expires_is_read_as_openssl_reads_it(ca: Authority) -> None:
    for name, days in (("soon", 1), ("in-utc-time", 365), ("in-generalized-time", 40 * 365)):
        certificate, _ = ca.issue(name, days=days)
        done = subprocess.run(["openssl", "x509", "-in", certificate, "-noout", "-enddate"], capture_output=True, check=True)
        expiry = expiry_of(certificate)
        assert expiry is not None
        assert expiry.timestamp() == ssl.cert_time_to_seconds(done.stdout.decode().strip().partition("=")[2])


def test_a_certificate_that_is_replaced_while_connected_is_used_and_nothing_is_lost(
    tmp_path: Path, ca: Authority, secure: Secure
) -> None:
    secured = secure("require_certificate true", "use_identity_as_username true")
    (tmp_path / "own").mkdir()
    own, own_key = tmp_path / "own" / "daemon.pem", tmp_path / "own" / "daemon.key"

    def put(name: str, *, key_of: str | None = None) -> None:
        certificate, key = ca.issue(name)
        if key_of is not None:
            key = ca.issue(key_of)[1]
        own.write_bytes(certificate.read_bytes())
        own_key.write_bytes(key.read_bytes())

    def logins() -> list[str]:
        lines = [line for line in secured.log.read_text().splitlines() if " as daemon " in line]
        return [line.partition("u'")[2].partition("'")[0] for line in lines]

    put("first")
    listener = Listener(secured.plain_port)
    tls = {"ca_file": ca.file, "certificate_file": own, "key_file": own_key}
    daemon = Daemon(tmp_path, secured.broker.port, tls=tls)
    daemon.ledger.submit(entry("a", number) for number in range(500))
    wait_for(lambda: logins() == ["first"], "the first login")
    # Half replaced: the connection that there is goes on.
    put("second", key_of="third")
    daemon.publisher.reload()
    daemon.ledger.submit(entry("a", number) for number in range(500, 1_000))
    wait_for(lambda: len(listener.of("/result")) == 1_000, "the results")
    assert daemon.publisher.connected
    assert logins() == ["first"]
    put("second")
    daemon.ledger.submit(entry("a", number) for number in range(1_000, 1_500))
    daemon.publisher.reload()
    wait_for(lambda: logins() == ["first", "second"], "the login with the new certificate")
    daemon.ledger.submit(entry("a", number) for number in range(1_500, 2_000))
    wait_for(lambda: len(listener.of("/result")) >= 2_000, "the results")
    assert numbers(listener) == list(range(2_000))
    assert set(listener.of("/status")) == {b"online"}  # the will was not sent
    daemon.stop()
    listener.close()


def test_a_bad_certificate_is_told_while_results_wait_and_mended_without_a_restart(
    tmp_path: Path, ca: Authority, secure: Secure
) -> None:
    secured = secure("require_certificate true")
    listener = Listener(secured.plain_port)
    own, key = ca.issue("daemon-expired", days=-1)
    daemon = Daemon(tmp_path, secured.broker.port, tls={"ca_file": ca.file, "certificate_file": own, "key_file": key})
    daemon.ledger.submit(entry("a", number) for number in range(3))
    assert daemon.publisher.attempted.wait(10)
    assert f"mqtt.tls.certificate_file: {own}: it expired on" in str(daemon.publisher.trouble)
    assert daemon.depth() == 3
    ca.issue("daemon-expired")
    wait_for(lambda: numbers(listener) == [0, 1, 2], "the results")
    assert daemon.publisher.trouble is None
    daemon.stop()
    listener.close()


def test_a_name_that_is_not_checked_is_shown_in_the_retained_status(make: MakePlant, ca: Authority, secure: Secure) -> None:
    plant, secured = make(), secure(names="DNS:broker.plant7.example")
    tls = {"ca_file": ca.file, "check_hostname": False}
    settings = MqttConfig.model_validate({"port": secured.broker.port, "tls": tls})
    inbox = MqttCommands(settings, plant.commands, ["press"], lambda reply: announcer.publisher.reply(reply))
    losses = Losses(Topics(settings.prefix), plant.metrics.lost)
    announcer = Announcer(settings, "1", plant.ledger, plant.metrics, inbox, losses, {}, {})
    announcer.publisher.start()
    wait_for(lambda: announcer.publisher.connected, "the connection")
    listener = Listener(secured.plain_port, "aprilcam/status")
    wait_for(lambda: listener.heard != [], "the status")
    assert listener.heard[0].retained
    assert json.loads(listener.heard[0].payload)["tls"] == "hostname_not_checked"
    announcer.publisher.stop(announcer.status("stopped"), 1.0)
    listener.close()


def test_replaced_files_are_noticed_by_themselves_but_not_when_they_are_only_touched(
    tmp_path: Path, ca: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connectors.tls.LOOK_EVERY_S", 0.0)
    file = tmp_path / "ca.pem"
    file.write_bytes(ca.file.read_bytes())
    watch = CertificateWatch(MqttConfig.model_validate({"tls": {"ca_file": file}}).tls)
    assert not watch.renewed()
    file.touch()
    assert not watch.renewed()
    file.write_text("half")
    assert not watch.renewed()
    file.write_bytes(Authority(tmp_path, "other").file.read_bytes())
    assert watch.renewed()
