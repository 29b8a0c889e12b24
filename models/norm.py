"""Normalisation for learners: by the statistics of the batch at hand, without running averages; or by fixed numbers."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse

from utils import distributed
from utils.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


class BatchStatsNorm2d(nn.Module):
    """Normalise (B, C, H, W) by the batch's own mean and biased variance, then scale and shift.

    `native` picks PyTorch's fused operator, which is twice as fast on a CPU. Its second derivative under
    `torch.func.vmap` with affine parameters is silently wrong, so networks that are mapped use the written-out form
    (`written_out`). `reference` limits the statistics to the first so many images of the batch (`statistics_from`).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps
        self.native = True
        self.reference: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.native and self.reference is None:
            batch, channels, height, width = x.shape
            rows = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (B*H*W, C), a view of channels-last images
            rows = F.batch_norm(rows, None, None, self.weight, self.bias, training=True, eps=self.eps)
            return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        var, mean = torch.var_mean(x[: self.reference], dim=(0, 2, 3), correction=0)  # (C,), (C,)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


class FixedNorm2d(nn.Module):
    """Scale and shift each channel of (B, C, H, W) by learnt numbers: what is left of a normalisation once it is folded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` of a batch (B, C, H, W) of which each process has a share: it trains with the whole batch's statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or distributed.size() == 1:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        own_count = x.new_full((1,), x.numel() / x.shape[1])  # B * H * W of the share
        *sums, count = distributed.total(torch.cat([x.sum((0, 2, 3)), own_count])).split([x.shape[1], 1])
        mean = sums[0] / count
        centred = x - mean[:, None, None]
        var = distributed.total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        return centred * (self.weight * torch.rsqrt(var + self.eps))[:, None, None] + self.bias[:, None, None]


def shared_norms(network: Network) -> Network:
    """`network`, whose `BatchNorm2d` count the whole batch where several processes share it; with one process as it is.

    Raises `UserError` for normalisations that cannot.
    """
    if distributed.size() == 1:
        return network
    for name, module in list(network.named_modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        plain = type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats
        if not plain or module.momentum is None:
            raise UserError(f"{name} is a {type(module).__name__}: it is not trained by several processes; leave out torchrun")
        shared = SharedBatchNorm2d(module.num_features, module.eps, module.momentum)
        shared._parameters, shared._buffers = module._parameters, module._buffers  # the very ones: an optimizer may hold them
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, shared)
    return network


@torch.no_grad()
def folded(network: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of `network` with the running statistics of each BatchNorm2d folded into its scale and shift.

    Its twin with `FixedNorm2d` computes with them what `network` computes in evaluation mode.
    """
    params = {name: value.detach().clone() for name, value in network.named_parameters()}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            scale = module.weight * torch.rsqrt(module.running_var + module.eps)
            params[f"{name}.weight"] = scale
            params[f"{name}.bias"] = module.bias - module.running_mean * scale
    return params


def merged(network: nn.Module) -> nn.Module:
    """A copy of `network` in evaluation mode with each BatchNorm2d merged into the convolution before it: for answers alone.

    The network must be one of this project's, whose forward pass can be traced.
    """
    return fuse(copy.deepcopy(network).eval())


def written_out(network: Network) -> Network:
    """A copy of `network` whose normalisation is plain tensor arithmetic, right to map over with `vmap`."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, BatchStatsNorm2d):
            module.native = False
    return network


@contextmanager
def statistics_from(network: nn.Module, count: int) -> Iterator[None]:
    """Inside the block, the first `count` images of each batch alone supply the statistics (inductive evaluation)."""
    norms = [module for module in network.modules() if isinstance(module, BatchStatsNorm2d)]
    for norm in norms:
        norm.reference = count
    try:
        yield
    finally:
        for norm in norms:
            norm.reference = None
