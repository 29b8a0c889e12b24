"""Room for a large tensor: on its device, in this machine's memory, or in a file that is mapped into it."""

import os
import sys
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from utils.errors import UserError

SHARE = 4  # one tensor takes at most a fourth of a memory


def room_for(shape: Sequence[int], dtype: torch.dtype, device: torch.device, folder: Path) -> torch.Tensor:
    """A tensor of `shape` to be filled: on `device`, where a fourth of its memory is enough, else on the CPU.

    Where the machine's memory is short as well it lies in a file below `folder`, which the system reads as it is needed and
    which is gone with the process. Raises `UserError` where the disk has no room for it.
    """
    size = prod(shape) * dtype.itemsize
    for place in dict.fromkeys((device, torch.device("cpu"))):
        if size <= memory_of(place) // SHARE:
            return torch.empty(tuple(shape), dtype=dtype, device=place)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".room-") as file:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk is to be known now, not at some later write
            else:
                file.truncate(size)
        except OSError as error:
            raise UserError(f"{folder} has no room for {size / 1e9:.1f} GB ({error.strerror}): choose another --out") from error
        return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype).view(tuple(shape))


def memory_of(device: torch.device) -> int:
    """The bytes of memory that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):
        return sys.maxsize  # a system that does not say: as if all would fit
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
