"""What the machine can do at best, and what it is called."""

import platform
import re
import time
from collections.abc import Callable

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
    """The processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            found = re.search(r"model name\s*:\s*(.*)", file.read())
        return found[1].strip() if found else platform.processor()
    except OSError:
        return platform.processor() or platform.machine()
