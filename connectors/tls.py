"""TLS to the broker: the context made from files that may be replaced at any time, and what goes wrong, said plainly."""

import contextlib
import hashlib
import logging
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from config.errors import MqttError
from config.schema import MqttConfig, TlsConfig
from connectors.contract import TlsUse
from connectors.secret import first_line

log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
"""How often the files are looked at while connected."""
READABLE = "Make it readable to the daemon"
_ISSUER = (18, 19, 20, 21)
"""X509_verify_cert's codes for a chain that ends at no CA we know (openssl-verification-options(1))."""
_NAME = (62, 64)


class TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails, which paho does not, and keeps why the broker ended the connection: with TLS 1.3 a
    client certificate is refused only after the handshake (RFC 8446 section 4.4.2.4), where paho tells nobody."""

    trouble: OSError | None = None

    def do_handshake(self, block: bool = False) -> None:
        """As SSLSocket's."""
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise

    def recv(self, *args: Any) -> bytes:
        """As SSLSocket's."""
        try:
            return super().recv(*args)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            self.trouble = error
            raise

    def send(self, *args: Any) -> int:
        """As SSLSocket's."""
        try:
            return super().send(*args)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            # The broker has closed it; why lies behind, unread.
            with contextlib.suppress(OSError):
                self.recv(1)
            raise


def tls_use(config: MqttConfig) -> TlsUse:
    """As told in the retained status."""
    if config.tls is None:
        return "off"
    return "verified" if config.tls.check_hostname else "hostname_not_checked"


def make_context(tls: TlsConfig) -> ssl.SSLContext:
    """Read the files as they are now. Raises MqttError naming the file, the reason and the mend."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = TlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = tls.check_hostname
    if tls.ca_file is None:
        context.load_default_certs()
    else:
        _check_pem(tls.ca_file, "ca_file")
        try:
            context.load_verify_locations(tls.ca_file)
        except OSError as error:
            raise _wrong("ca_file", tls.ca_file, _plain(error), "Put the CA's PEM file there") from None
    if tls.certificate_file is not None:
        _load_own(context, tls, tls.certificate_file)
    return context


def _load_own(context: ssl.SSLContext, tls: TlsConfig, certificate: Path) -> None:
    expiry = _expiry(_check_pem(certificate, "certificate_file"))
    if expiry is None:
        raise _wrong("certificate_file", certificate, "its certificate cannot be read", "Put a whole PEM file there")
    key = tls.key_file or certificate
    which = "key_file" if tls.key_file else "certificate_file"

    def password() -> str:
        # Without this OpenSSL asks at the terminal, and waits.
        if tls.key_password_file is None:
            mend = "Set key_password_file, or put a key without one there"
            raise _wrong(which, key, "the key is encrypted with a password", mend)
        return first_line(tls.key_password_file, "mqtt.tls.key_password_file:")

    try:
        context.load_cert_chain(certificate, tls.key_file, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason, mend = f"it is not the key of {certificate}", "Put key and certificate there that belong together"
        elif tls.key_password_file is not None:
            reason, mend = "no private key in PEM that this password opens", "Check the file and key_password_file"
        else:
            reason, mend = "no private key in PEM", "Put the certificate's key there"
        raise _wrong(which, key, reason, mend) from None
    except OSError as error:
        raise _wrong(which, key, _plain(error), READABLE) from None
    except ValueError:
        raise _wrong("key_password_file", tls.key_password_file or key, "too long for a password", "Check the file") from None
    if expiry < datetime.now(UTC):
        raise _wrong("certificate_file", certificate, f"it expired on {expiry:%Y-%m-%d %H:%M} UTC", "Renew it")


def _check_pem(file: Path, key: str) -> bytes:
    """The first certificate, DER."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise _wrong(key, file, _plain(error), READABLE) from None
    block = text[text.find(ssl.PEM_HEADER) :].partition(ssl.PEM_FOOTER)[0] + ssl.PEM_FOOTER
    try:
        return ssl.PEM_cert_to_DER_cert(block)
    except ValueError:
        raise _wrong(key, file, "no certificate in PEM", "Put a PEM file there") from None


def _wrong(key: str, file: Path, reason: str, mend: str) -> MqttError:
    return MqttError(f"mqtt.tls.{key}: {file}: {reason}. {mend}.")


def _plain(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "not a PEM file of certificates"
    return error.strerror or str(error)


def expiry_of(certificate: Path) -> datetime | None:
    """When the first certificate of a PEM file expires; None where that cannot be read."""
    try:
        return _expiry(_check_pem(certificate, "certificate_file"))
    except MqttError:
        return None


def _expiry(der: bytes) -> datetime | None:
    """notAfter of an X.509 certificate (RFC 5280 section 4.1): Python's ssl shows it of the broker's only."""
    try:
        tbs, _ = _inner(der, _inner(der, 0)[0])
        at = tbs
        if der[at] == 0xA0:  # the version, which is optional
            at = _inner(der, at)[1]
        for _ in range(3):  # serial number, signature, issuer
            at = _inner(der, at)[1]
        not_before, _ = _inner(der, at)
        not_after = _inner(der, not_before)[1]
        begin, end = _inner(der, not_after)
        text = der[begin:end].decode("ascii")
        if der[not_after] == 0x17:  # UTCTime: two digits for 1950 to 2049
            text = ("20" if text[:2] < "50" else "19") + text
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except (IndexError, ValueError):
        return None


def _inner(der: bytes, at: int) -> tuple[int, int]:
    """Begin and end of the content of the DER element at a place."""
    length = der[at + 1]
    begin = at + 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(der[begin : begin + size])
        begin += size
    return begin, begin + length


def trouble_of(tls: TlsConfig) -> str | None:
    """What is wrong with the files now, as far as it can be known without the broker."""
    try:
        make_context(tls)
    except MqttError as error:
        return str(error)
    return None


def explain(error: Exception, config: MqttConfig) -> tuple[str, str] | None:
    """(reason, mend) of a connection that TLS ended, None where it was not TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_verified(error, config)
    if config.tls is not None and isinstance(error, ssl.SSLEOFError | ConnectionResetError):
        return "it hung up while TLS began", "Check that [mqtt] port is one where it speaks TLS (8883 mostly)"
    if not isinstance(error, ssl.SSLError):
        return None
    reason = error.reason or ""
    if "UNSUPPORTED_PROTOCOL" in reason or "PROTOCOL_VERSION" in reason:
        return "it speaks no TLS as new as 1.2", "Let the broker speak TLS 1.2 or newer"
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "it answers without TLS", "Check [mqtt] port (8883 mostly), or leave [mqtt.tls] out"
    own = config.tls.certificate_file if config.tls is not None else None
    mend = "Set [mqtt.tls] certificate_file and key_file"
    if "CERTIFICATE_REQUIRED" in reason:
        return "it wants a client certificate", mend
    if "HANDSHAKE_FAILURE" in reason and own is None:  # so it is said with TLS 1.2
        return "it wants a client certificate, or no cipher that we know", mend
    if own is not None and "ALERT" in reason and any(word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "DENIED")):
        why = reason.partition("ALERT_")[2].replace("_", " ").lower()
        return f"it does not accept our certificate ({why})", f"Renew {own}, signed by a CA that the broker knows"
    why = reason.replace("_", " ").lower() or str(error)
    return f"TLS failed ({why})", "The broker's log may say more"


def _not_verified(error: ssl.SSLCertVerificationError, config: MqttConfig) -> tuple[str, str]:
    ca_file = config.tls.ca_file if config.tls is not None else None
    if error.verify_code in _ISSUER:
        known = str(ca_file) if ca_file is not None else "this machine's trust store"
        return f"its certificate is of no CA in {known}", "Set [mqtt.tls] ca_file to the CA that signed it"
    if error.verify_code in _NAME:
        mend = "Use a name of its certificate as [mqtt] host, or have it made with this one (subjectAltName)"
        return f"its certificate is not for the name {config.host!r}", mend
    if error.verify_code == 10:
        return "its certificate has expired", "Renew it at the broker; and check this machine's clock"
    return f"its certificate cannot be trusted: {error.verify_message}", "Mend it at the broker, or check this machine's clock"


class CertificateWatch:
    """Notices that certificate files were replaced while connected. One thread owns it; `hurry` may be called from any."""

    def __init__(self, tls: TlsConfig | None) -> None:
        """Made before the files are read, so that no change falls in between."""
        self._tls = tls
        self._seen = self._digest()
        self._next_s = time.monotonic() + LOOK_EVERY_S
        self._hurried = False

    def hurry(self) -> None:
        """Look now, not at the next time."""
        self._hurried = True

    def renewed(self) -> bool:
        """Whether there are other files than at the beginning, and usable ones. Others are told in the log, once."""
        if self._tls is None or not (self._hurried or time.monotonic() >= self._next_s):
            return False
        self._hurried, self._next_s = False, time.monotonic() + LOOK_EVERY_S
        digest = self._digest()
        if digest == self._seen:
            return False
        self._seen = digest
        try:
            make_context(self._tls)
        except MqttError as error:
            log.warning("%s The connection that there is goes on with the old files.", error)
            return False
        return True

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for key, file in (self._tls.files if self._tls is not None else {}).items():
            try:
                content = file.read_bytes()
            except OSError as error:
                content = str(error).encode()
            digest.update(f"{key} {len(content)} ".encode() + content)
        return digest.digest()
