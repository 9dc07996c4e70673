"""The wheel, the wheelhouse's hashes and the Debian package: built, installed, upgraded, removed and purged for real.

Only the packages of others that aprilcam needs are stand-ins here, wheels without anything in them: the real ones are 3 GB. What
the installed program imports is then the test environment's.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chroot import Chroot

ROOT = Path(__file__).parent.parent
PARTS = (
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
    "config",
    "connectors",
    "daemon",
    "model",
    "systemd",
    "docs",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEBIANS = Path("/usr/bin/python3")


def build(folder: Path, version: str) -> tuple[Path, Path]:
    """(wheel, package) of that version, from a copy of the sources."""
    source = folder / f"source-{version}"
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / part, source / part)
    project = source / "pyproject.toml"
    text, count = re.subn(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text())
    assert count == 1
    project.write_text(text)
    subprocess.run([source / "systemd/package/wheel", folder / version, sys.executable], check=True)
    [wheel] = (folder / version).glob("*.whl")
    made = subprocess.run(
        [source / "systemd/package/deb", wheel, folder / version], check=True, stdout=subprocess.PIPE, text=True
    )
    return wheel, Path(made.stdout.strip())


def tracked(*folders: str) -> set[str]:
    """Files of the repository, those that are new among them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("first"), "1.0.0")


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in wheel for each package that we need, and their hashes."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    versions = {name.lower().replace("-", "_"): version for name, version in pinned.items()}
    for dependency in PROJECT["dependencies"]:
        name = dependency.lower().replace("-", "_")
        stem = f"{name}-{versions[name]}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            info = f"{stem}.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {versions[name]}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    subprocess.run([sys.executable, ROOT / "systemd/package/hashes", folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def chroot(tmp_path: Path) -> Iterator[Chroot]:
    chroot = Chroot(tmp_path / "chroot")
    try:
        if (trouble := chroot.make()) is not None:
            pytest.skip(trouble)
        yield chroot
    finally:
        chroot.close()


def test_the_wheel_has_every_module_and_data_file_and_no_test(first: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(first[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    code = {name for name in tracked("config", "connectors", "daemon", "model") if name.endswith((".py", ".toml", ".json"))}
    nodes = {name for name in code if name.startswith("config/node-red/")}  # of the engineers' desks, not the daemon's
    assert code - nodes - names == set()
    assert {name.split("/")[0] for name in names} == {"config", "connectors", "daemon", "model"}
    assert {"config/mosquitto/acl", "config/aprilcam.example.toml", "model/prompts.json", "daemon/doctor/gpu.py"} <= names


def test_the_wheel_runs_from_where_it_is_installed(first: tuple[Path, Path], tmp_path: Path) -> None:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "lib"),
        str(first[0]),
    ]
    subprocess.run(install, check=True)
    program = "import daemon, sys; from daemon.cli import main; print(daemon.__file__); sys.argv = ['aprilcam', '--help']; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == str(tmp_path / "lib/daemon/__init__.py")
    assert "doctor" in done.stdout


def test_hashes_name_each_wheel_once(wheelhouse: Path, tmp_path: Path) -> None:
    lines = (wheelhouse / "requirements.txt").read_text().splitlines()
    assert len(lines) == len(PROJECT["dependencies"])
    [torch] = [line for line in lines if line.startswith("torch==")]
    [file] = wheelhouse.glob("torch-*.whl")
    assert torch.endswith(f" --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}")
    for version in ("1.0", "2.0"):
        (tmp_path / f"torch-{version}-py3-none-any.whl").touch()
    done = subprocess.run(
        [sys.executable, ROOT / "systemd/package/hashes", tmp_path], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, "two wheels of torch" in done.stderr) == (1, True)


def test_the_package_holds_what_a_service_needs(first: tuple[Path, Path], tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--raw-extract", first[1], tmp_path / "root"], check=True)
    root = tmp_path / "root"
    assert (root / "usr/lib/systemd/system/aprilcam.service").read_text() == (ROOT / "systemd/aprilcam.service").read_text()
    places = {
        "sysusers": "sysusers.d/aprilcam.conf",
        "tmpfiles": "tmpfiles.d/aprilcam.conf",
        "sysctl": "sysctl.d/60-aprilcam.conf",
    }
    for kind, place in places.items():
        source = ROOT / f"systemd/aprilcam.{kind}"
        assert (root / "usr/lib" / place).exists() == source.exists()
    assert (root / "DEBIAN/conffiles").read_text() == "/etc/aprilcam/aprilcam.example.toml\n"
    subprocess.run(["md5sum", "--check", "--quiet", "DEBIAN/md5sums"], cwd=root, check=True)
    for script in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", root / "DEBIAN" / script], check=True)
        assert "@" not in re.sub(r'"\$@"', "", (root / "DEBIAN" / script).read_text()), "every place is filled in"


def test_install_upgrade_remove_and_purge(first: tuple[Path, Path], wheelhouse: Path, tmp_path: Path, chroot: Chroot) -> None:
    version = subprocess.run(
        [DEBIANS, "-c", "import sys; print(*sys.version_info[:2])"], stdout=subprocess.PIPE, text=True, check=True
    )
    if version.stdout.split() != [str(part) for part in sys.version_info[:2]]:
        pytest.skip("the test environment's packages are of another Python than Debian's")
    _, second = build(tmp_path, "2.0.0")
    chroot.bind(Path(sysconfig.get_path("purelib")), "/mnt/packages")
    chroot.put(first[1], "/root/first.deb")
    chroot.put(second, "/root/second.deb")
    chroot.put(wheelhouse, "/opt/aprilcam-wheelhouse")
    before = chroot.changed()

    def aprilcam(*words: str) -> str:
        return chroot.run("/usr/bin/aprilcam", *words, environment={"PYTHONPATH": "/mnt/packages"})

    chroot.run("mkdir", "/opt/aprilcam")
    told = chroot.run("dpkg", "--install", "/root/first.deb", fails=True)
    assert "aprilcam: /opt/aprilcam is a folder that this package did not make. Move it away, then: dpkg --configure" in told
    chroot.run("rmdir", "/opt/aprilcam")
    told = chroot.run("dpkg", "--configure", "aprilcam")
    assert "installed, not started. Next: cp /etc/aprilcam/aprilcam.example.toml" in told
    assert "doctor" in aprilcam("--help")
    assert chroot.run("readlink", "/opt/aprilcam").startswith("/opt/aprilcam-venvs/1.0.0-")
    if (ROOT / "systemd/aprilcam.sysusers").exists():
        assert "aprilcam" in chroot.run("id", "aprilcam")

    # what an engineer and the daemon put there
    chroot.run(
        "sh",
        "-c",
        "echo own >/etc/aprilcam/aprilcam.toml; mkdir -p /var/lib/aprilcam/cache; echo >/var/lib/aprilcam/ledger.sqlite3",
    )
    chroot.run("sh", "-c", "echo more | tee -a /opt/aprilcam-wheelhouse/rich-*.whl")
    told = chroot.run("dpkg", "--install", "/root/second.deb", fails=True)
    assert "the wheelhouse /opt/aprilcam-wheelhouse does not fit this version (above). Make it again" in told
    assert "rich" in told
    assert "doctor" in aprilcam("--help"), "the old one goes on"
    assert chroot.run("readlink", "/opt/aprilcam").startswith("/opt/aprilcam-venvs/1.0.0-")
    chroot.put(wheelhouse, "/opt/aprilcam-wheelhouse")
    told = chroot.run("dpkg", "--configure", "aprilcam")
    assert "not started" not in told
    assert chroot.run("dpkg-query", "-W", "-f", "${Status} ${Version}", "aprilcam") == "install ok installed 2.0.0"
    assert chroot.run("readlink", "/opt/aprilcam").startswith("/opt/aprilcam-venvs/2.0.0-")
    assert len(chroot.run("ls", "/opt/aprilcam-venvs").split()) == 1
    assert chroot.run("cat", "/etc/aprilcam/aprilcam.toml") == "own\n"
    assert "doctor" in aprilcam("--help")

    chroot.run("dpkg", "--remove", "aprilcam")
    assert chroot.run("ls", "/etc/aprilcam").split() == ["aprilcam.example.toml", "aprilcam.toml"]
    assert chroot.run("sh", "-c", "ls -d /opt/aprilcam*").split() == ["/opt/aprilcam-wheelhouse"]
    told = chroot.run("dpkg", "--purge", "aprilcam")
    assert "/var/lib/aprilcam is kept (results, archive, reference shots)" in told
    left = {name for name in chroot.changed() - before if "aprilcam" in name}
    assert left == {"/var/lib/aprilcam", "/var/lib/aprilcam/ledger.sqlite3"}
