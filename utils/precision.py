"""Where fewer bits are harmless: half of them for inversion with a generator, never for meta-gradients or estimated ones."""

from contextlib import AbstractContextManager

import torch

PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Inside the block convolutions and matrix products run in bfloat16, where `precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
