"""The machine's clock and limits."""

import ctypes
import resource
import struct
from collections.abc import Iterator

from daemon.doctor.finding import Finding, Situation

FILES = 1_024
_STA_UNSYNC = 0x40
_TIME_ERROR = 5
_FAR_US = 1_000_000


def look_at_clock(_: Situation) -> Iterator[Finding]:
    """Whether something keeps it right, as the kernel knows it (adjtimex(2)): chrony, timesyncd, a PTP client."""
    try:
        state, status, error_us = kernel_clock()
    except OSError as error:
        yield Finding("skipped", f"the kernel does not tell: {error.strerror}")
        return
    yield judge_clock(state, status, error_us)


def kernel_clock() -> tuple[int, int, int]:
    """(state, status, the most it may be off in microseconds) by adjtimex(2), which changes nothing. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = ctypes.create_string_buffer(512)  # modes is 0; struct timex has 208 bytes
    state = libc.adjtimex(timex)
    if state < 0:
        number = ctypes.get_errno()
        raise OSError(number, "adjtimex refused")
    _, _, _, error_us, _, status = struct.unpack_from("@Iqqqqi", timex.raw)
    return state, status, error_us


def judge_clock(state: int, status: int, error_us: int) -> Finding:
    """Of what `kernel_clock` gave."""
    if state == _TIME_ERROR or status & _STA_UNSYNC:
        return Finding("warn", "nothing keeps the clock right: times of results drift", "apt-get install chrony")
    found = f"kept right, at most {error_us / 1e3:.0f} ms off"
    if error_us > _FAR_US:
        return Finding("warn", found, "Look at its servers: chronyc sources")
    return Finding("ok", found)


def look_at_file_limit(_: Situation) -> Iterator[Finding]:
    """Of this process; the unit sets the daemon's own (LimitNOFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{_files(soft)} open files, {_files(hard)} at most; the unit sets 65536"
    if resource.RLIM_INFINITY not in (soft, hard) and soft < FILES:
        yield Finding("warn", found, f"ulimit -n {FILES} or more, where the daemon is started by hand")
    else:
        yield Finding("ok", found)


def _files(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
