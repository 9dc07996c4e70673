"""aravis' own fake GigE Vision camera as a process: `python -m tests.fake_camera ADDRESS SERIAL [LOST [XML]]`.

The same that Debian's arv-fake-gv-camera-0.8 runs; that program comes with GTK, its class with the library. LOST is the share of
packets that are left out, XML another description of its features. Its timestamp register runs 1,000 s ahead of the clock that
stamps its frames, so that a test sees whether it was asked.
"""

import sys
import time

from connectors.cameras.aravis_nodes import aravis_library

AHEAD_S = 1000.0
_TIMESTAMP = 0x0948  # GigE Vision's registers: the latched timestamp, high and low half


def main() -> None:
    """Run until killed; says "ready" once it answers."""
    aravis, _ = aravis_library()
    address, serial, *more = sys.argv[1:]
    camera = aravis.GvFakeCamera.new_full(address, serial, more[1] if len(more) > 1 else None)
    camera.set_property("gvsp-lost-ratio", float(more[0]) if more else 0.0)
    if not camera.is_running():
        raise SystemExit(f"no interface has the address {address}")
    print("ready", flush=True)
    inner = camera.get_fake_camera()
    while True:
        now_ns = time.time_ns() + int(AHEAD_S * 1e9)
        inner.write_register(_TIMESTAMP, now_ns >> 32)
        inner.write_register(_TIMESTAMP + 4, now_ns & 0xFFFFFFFF)
        time.sleep(0.001)


if __name__ == "__main__":
    main()
