"""`make run`: lay out the pictures, start a private broker, run the daemon on them, and end the broker after it."""

import argparse
import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from config.schema import load_config
from demo.pictures import BUILD, lay_out

CONFIG = Path(__file__).parent.parent / "config" / "demo.toml"
MOSQUITTO_PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


def free_port() -> int:
    """A TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_us() -> None:
    """In the child: end when the parent does, however that ends (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextlib.contextmanager
def private_broker(folder: Path) -> Iterator[int]:
    """A mosquitto with its own configuration and data in `folder`; gives its port."""
    program = shutil.which("mosquitto", path=MOSQUITTO_PLACES)
    if program is None:
        raise SystemExit("mosquitto is not installed: apt-get install mosquitto")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = folder / "mosquitto.conf"
    # user root: started by root it would else drop to a user that may not write here; started by others it has no effect.
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\npersistence_location {folder}/\n"
        "set_tcp_nodelay true\nlog_dest none\n"
    )
    # A session of its own: Ctrl-C is for the daemon, which still has to say goodbye to the broker.
    with (folder / "mosquitto.log").open("wb") as log:
        broker = subprocess.Popen([program, "-c", str(config)], start_new_session=True, stderr=log, preexec_fn=_die_with_us)
    try:
        deadline_s = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            if broker.poll() is not None or time.monotonic() > deadline_s:
                raise SystemExit(f"mosquitto did not start; its words are in {folder / 'mosquitto.log'}")
            time.sleep(0.02)
        yield port
    finally:
        broker.terminate()
        broker.wait(10)


def main() -> int:
    """The exit code of the daemon."""
    parser = argparse.ArgumentParser(prog="make run")
    parser.add_argument("--pictures", type=Path, help="a folder in MVTec AD's layout, instead of the solar cells")
    options = parser.parse_args()
    http = load_config(CONFIG).http
    print(f"page: http://{http.host}:{http.port}/, in a moment", flush=True)
    line = lay_out(options.pictures)
    defective = sum(part.defective for part in line)
    where = options.pictures or "solar cells of elpv-dataset (demo/README.md)"
    print(f"pictures: {where}: {len(line) - defective} good and {defective} defective parts, over and over", flush=True)
    with private_broker(BUILD / "broker") as port:
        print(f"private broker: 127.0.0.1:{port}", flush=True)
        command = [sys.executable, "-m", "daemon.cli", "run", "--config", str(CONFIG), "--broker", f"127.0.0.1:{port}"]
        # Signals are for the daemon: a terminal sends Ctrl-C to both, `kill` reaches only us and is passed on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        daemon = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: daemon.terminate())
        return daemon.wait()


if __name__ == "__main__":
    sys.exit(main())
