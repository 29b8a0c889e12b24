"""What the machine can do at best, and what it is called."""

import ctypes
import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Wall-clock seconds of a call, the device's work included: the mean of `calls` calls, one after another."""
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        work()
    wait(device)
    return (time.perf_counter() - start) / calls


def peak_of(work: Callable[[], object]) -> int | None:
    """Bytes of memory that `work` needs beside what the process holds before; None where the system does not tell (not Linux).

    Memory that was freed earlier is handed back first, or it would not count.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the highest mark begins anew
        before = _memory()["VmRSS"]
        work()
        return _memory()["VmHWM"] - before
    except (OSError, AttributeError, KeyError):
        return None


def _memory() -> dict[str, int]:
    """What the system says of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {name: 1024 * int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value}


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Floating-point operations a second of a square matrix product, at its best."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: a @ b, device) for _ in range(20))


def bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that a copy reads and writes, at its best."""
    source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(seconds_of(lambda: target.copy_(source), device) for _ in range(10))


def name_of(device: torch.device) -> str:
    """The processor's name, and the vector instructions that PyTorch uses of it: makers give one name to several."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        found = re.search(r"model name\s*:\s*(.*)", file.read())
        name = found[1].strip() if found else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
