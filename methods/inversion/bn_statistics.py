"""How far a batch's statistics lie from those a teacher's normalisation layers remember (Yin et al., CVPR 2020)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def record_bn_distances(network: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block each forward pass appends one distance per BatchNorm2d layer; the hooks are gone on exit.

    The distance is ||mu - running_mean|| + ||var - running_var||: unsquared norms, of the layer's input, with the
    biased variance. Under `vmap` use the list inside the mapped function.
    """
    distances: list[Tensor] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)  # (C,), (C,)
        assert isinstance(layer.running_mean, Tensor)
        assert isinstance(layer.running_var, Tensor)
        distances.append((mean - layer.running_mean).norm() + (var - layer.running_var).norm())

    handles = [layer.register_forward_pre_hook(record) for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    try:
        yield distances
    finally:
        for handle in handles:
            handle.remove()
