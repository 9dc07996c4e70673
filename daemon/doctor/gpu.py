"""The GPU, its driver, and whether torch can use them."""

import shutil
import subprocess
from collections.abc import Iterator

from daemon.doctor.child import ChildError, ask
from daemon.doctor.finding import Finding, Situation, Status

NVIDIA = "0x10de"
ANSWER_S = 10.0
_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
answer = {"version": torch.__version__, "built_for": torch.version.cuda, "devices": torch.cuda.device_count() if cuda else 0}
print(json.dumps(answer | {"capability": [list(torch.cuda.get_device_capability(n)) for n in range(answer["devices"])]}))
"""
_USE = """
import json, sys, torch
x = torch.ones(64, 64, device=sys.argv[1])
print(json.dumps({"sum": float((x @ x).sum())}))
"""


def _wants_cuda(situation: Situation) -> bool:
    return situation.config is not None and situation.config.inference.device.startswith("cuda")


def look_at_gpu(situation: Situation) -> Iterator[Finding]:
    """By nvidia-smi; without one by the PCI bus, which shows a GPU that has no driver."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        yield from _by_program(program, "fail" if _wants_cuda(situation) else "warn")
        return
    if _on_the_bus(situation):
        mend = "apt-get install nvidia-driver (Debian's non-free), then restart the machine"
        yield Finding("fail" if _wants_cuda(situation) else "warn", "an NVIDIA GPU is there, and no driver of it", mend)
    elif _wants_cuda(situation):
        mend = 'Set [inference] device = "cpu", or put a GPU into this machine'
        yield Finding("fail", "no GPU, and the configuration asks for one", mend)
    else:
        yield Finding("ok", "no GPU, the CPU is used")


def _by_program(program: str, otherwise: Status) -> Iterator[Finding]:
    """What nvidia-smi tells of each GPU; `otherwise` is how bad it is when it tells nothing."""
    mend = "Install the driver for this kernel again (nvidia-driver), then restart the machine"
    command = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(otherwise, f"nvidia-smi does not answer: {error}", mend)
        return
    rows = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not rows:
        told = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        yield Finding(otherwise, f"nvidia-smi: {told[0]}", mend)
        return
    for index, row in enumerate(rows):
        name, driver, memory = [*(part.strip() for part in row.split(",")), "", ""][:3]
        yield Finding("ok", f"cuda:{index}: {name}, {memory}, driver {driver}")


def _on_the_bus(situation: Situation) -> bool:
    return any(
        situation.read(f"{device}/vendor") == NVIDIA and (situation.read(f"{device}/class") or "").startswith("0x03")
        for device in (situation.root / "sys/bus/pci/devices").glob("*")
    )


def look_at_torch(situation: Situation) -> Iterator[Finding]:
    """Its build, and a small product on the configured device."""
    try:
        answer = ask("-c", _TORCH, limit_s=60)
    except ChildError as error:
        yield Finding("fail", f"torch cannot be loaded: {error}", "Install aprilcam again (docs/install.md)")
        return
    build = f"torch {answer['version']}, built for {'CUDA ' + answer['built_for'] if answer['built_for'] else 'the CPU only'}"
    if _wants_cuda(situation) and situation.config is not None:
        device = situation.config.inference.device
        try:
            ask("-c", _USE, device, limit_s=30)
        except ChildError as error:
            mend = f"Mend the driver, or install a torch that is built for this GPU, or change [inference] device = {device!r}"
            yield Finding("fail", f"{build}; {device} cannot be used: {error}", mend)
            return
        yield Finding("ok", f"{build}; {device} computes")
    elif answer["devices"]:
        mend = 'Set [inference] device = "cuda"' if situation.config is not None else ""
        yield Finding("ok", f"{build}; {answer['devices']} GPU can be used, none is asked for", mend)
    else:
        yield Finding("ok", f"{build}; the CPU is used")
