"""The four-block convolutional network of few-shot learning."""

import torch
from torch import nn

from models.backbone import Backbone, Channels, Norm, init_conv


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


class Conv4(Backbone):
    """Four blocks of `width` filters and a linear head.

    `global_pool` ends the features in a global maximum (`width` numbers), for learners that meet several image sizes.
    """

    def __init__(
        self, num_classes: int, image_size: int, norm: Norm, channels: int = 3, width: int = 32, global_pool: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[ConvBlock(channels if i == 0 else width, width, norm) for i in range(4)])
        side = image_size // 16
        self.reduce = nn.AdaptiveMaxPool2d(1) if global_pool else nn.Identity()
        self.head = nn.Linear(width if global_pool else width * side * side, num_classes)

    def channels(self) -> list[Channels]:
        names = [f"blocks.{number}" for number in range(len(self.blocks))]
        readers = [*[f"{name}.conv" for name in names[1:]], "head"]
        return [Channels([f"{name}.conv", f"{name}.norm"], [reader]) for name, reader in zip(names, readers, strict=True)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduce(self.blocks(x)).flatten(1)  # (B, C, S, S) -> (B, feature_dim)
