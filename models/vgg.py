"""VGG for small images, with normalisation and a single linear layer (Simonyan and Zisserman, ICLR 2015).

Fast-Datafree's code halves a fourth time at a side of exactly 64 only; ours from 64 on.
"""

from collections.abc import Sequence

import torch
from torch import nn

from models.backbone import Backbone, Norm, init_conv


class VGG(Backbone):
    """3x3 convolutions in five groups, halved after the first three (after four from 64 pixels on), global average.

    depths: convolutions of each group.
    """

    WIDTHS = (64, 128, 256, 512, 512)

    def __init__(self, depths: Sequence[int], num_classes: int, image_size: int, norm: Norm, channels: int = 3) -> None:
        super().__init__()
        widths = [width for width, depth in zip(self.WIDTHS, depths, strict=True) for _ in range(depth)]
        convs = [init_conv(nn.Conv2d(i, o, 3, padding=1)) for i, o in zip([channels, *widths], widths, strict=False)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList([norm(width) for width in widths])
        halved = 4 if image_size >= 64 else 3
        self.halved_after = {sum(depths[: number + 1]) - 1 for number in range(halved)}  # layers
        self.relu = nn.ReLU(inplace=True)
        self.halve = nn.MaxPool2d(2)
        self.head = nn.Linear(widths[-1], num_classes)
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = self.relu(norm(conv(x)))
            x = self.halve(x) if layer in self.halved_after else x
        return x.mean((2, 3))  # (B, C, S, S) -> (B, feature_dim)
