"""The statistics of a batch in a network's normalisation layers, and how far they lie from those a teacher remembers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Statistics = tuple[Tensor, Tensor]  # mean (C,) and biased variance (C,) of a layer's input


def distance(one: Statistics, other: Statistics) -> Tensor:
    """||mu - mu'|| + ||var - var'||: unsquared norms (Yin et al., CVPR 2020, as the papers' code has them)."""
    return (one[0] - other[0]).norm() + (one[1] - other[1]).norm()


@contextmanager
def record_bn_distances(network: nn.Module) -> Iterator[list[Tensor]]:
    """Inside the block each forward pass appends, per BatchNorm2d layer, its `distance` from the running statistics.

    The hooks are gone on exit. Under `vmap` use the list inside the mapped function.
    """

    def measure(layer: nn.Module, statistics: Statistics) -> Tensor:
        assert isinstance(layer.running_mean, Tensor)
        assert isinstance(layer.running_var, Tensor)
        return distance(statistics, (layer.running_mean, layer.running_var))

    with _record(network, nn.BatchNorm2d, measure) as distances:
        yield distances


@contextmanager
def record_statistics(network: nn.Module, kind: type[nn.Module]) -> Iterator[list[Statistics]]:
    """Inside the block each forward pass appends the statistics of each layer of that kind; the hooks are gone on exit."""
    with _record(network, kind, lambda layer, statistics: statistics) as statistics:
        yield statistics


@contextmanager
def _record(network: nn.Module, kind: type[nn.Module], measure: Callable[[nn.Module, Statistics], Any]) -> Iterator[list[Any]]:
    recorded: list[Any] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)  # (C,), (C,)
        recorded.append(measure(layer, (mean, var)))

    handles = [layer.register_forward_pre_hook(record) for layer in network.modules() if isinstance(layer, kind)]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
