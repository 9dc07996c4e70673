"""A certificate authority of the test's own, by the openssl program."""

import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout")


class Authority:
    """Signs certificates; all files lie in one folder, as NAME.pem and NAME.key."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.name = name
        key, file = str(folder / f"{name}.key"), str(self.file)
        constraint = "basicConstraints=critical,CA:TRUE"
        _openssl("req", "-x509", *_KEY, key, "-noenc", "-out", file, "-subj", f"/CN={name}", "-days", "2", "-addext", constraint)

    @property
    def file(self) -> Path:
        """Its own certificate."""
        return self.folder / f"{self.name}.pem"

    def issue(self, name: str, *, names: str = "IP:127.0.0.1", days: int = 2, password: str | None = None) -> tuple[Path, Path]:
        """(certificate, key) for a subject of that name; `names` is its subjectAltName, `password` encrypts the key."""
        pem, key, request = (self.folder / f"{name}.{suffix}" for suffix in ("pem", "key", "csr"))
        encryption = ("-noenc",) if password is None else ("-passout", f"pass:{password}")
        _openssl("req", "-new", *_KEY, str(key), *encryption, "-out", str(request), "-subj", f"/CN={name}")
        extension = self.folder / f"{name}.ext"
        extension.write_text(f"subjectAltName={names}\n")
        signer = ("-CA", str(self.file), "-CAkey", str(self.folder / f"{self.name}.key"), "-CAcreateserial")
        _openssl("x509", "-req", "-in", str(request), *signer, "-days", str(days), "-extfile", str(extension), "-out", str(pem))
        return pem, key


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
