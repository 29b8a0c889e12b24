"""The four-block convolutional network of few-shot learning."""

import math
from collections.abc import Callable

import torch
from torch import nn

Norm = Callable[[int], nn.Module]


def init_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """He initialisation by the number of outputs a filter touches, as in the papers' networks."""
    fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / fan_out))
    return conv


class ConvBlock(nn.Module):
    """3x3 convolution, normalisation, 2x2 max-pool, ReLU (pool first: the same result from a quarter of the work)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        super().__init__()
        self.conv = init_conv(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.norm = norm(out_channels)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.pool(self.norm(self.conv(x))))


class Conv4(nn.Module):
    """Four blocks of 32 filters and a linear head.

    `global_pool` ends the features in a global maximum (32 numbers), for learners that meet several image sizes.
    Maps (B, C, S, S) to (B, num_classes); `features` gives the (B, feature_dim) input of the head.
    """

    def __init__(
        self, num_classes: int, image_size: int, norm: Norm, channels: int = 3, width: int = 32, global_pool: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[ConvBlock(channels if i == 0 else width, width, norm) for i in range(4)])
        side = image_size // 16
        self.reduce = nn.AdaptiveMaxPool2d(1) if global_pool else nn.Identity()
        self.feature_dim = width if global_pool else width * side * side
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduce(self.blocks(x)).flatten(1)  # (B, C, S, S) -> (B, feature_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))
