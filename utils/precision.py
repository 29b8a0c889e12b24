"""Where fewer bits are harmless: half of them for inversion with a generator, never for meta-gradients or estimated ones."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

PRECISIONS = ("fp32", "bf16")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Inside the block convolutions and matrix products run in bfloat16, where `precision` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside the block nothing runs in half precision, and convolutions and products on a GPU keep all 23 bits.

    TF32 and bfloat16 would drown the small differences that gradients are estimated from.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
