"""Wide residual networks for small images (Zagoruyko and Komodakis, BMVC 2016): normalisation and ReLU come first."""

import torch
from torch import nn

from models.backbone import Backbone, Norm, init_conv


class PreActivationBlock(nn.Module):
    """Normalise, ReLU, 3x3 convolution, twice. Where the width changes, a 1x1 convolution of the activated input is added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = init_conv(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False))
        self.norm2 = norm(out_channels)
        self.conv2 = init_conv(nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False))
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = init_conv(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.relu(self.norm1(x))
        out = self.conv2(self.relu(self.norm2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Backbone):
    """Stem of 16 channels, three stages of 16, 32 and 64 times `widen`, global average, head; `depth` is 6n + 4."""

    def __init__(self, depth: int, widen: int, num_classes: int, norm: Norm, channels: int = 3) -> None:
        super().__init__()
        self.stem = init_conv(nn.Conv2d(channels, 16, 3, padding=1, bias=False))
        blocks, in_channels = [], 16
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for i in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(in_channels, width, 2 if stage > 0 and i == 0 else 1, norm))
                in_channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(in_channels, num_classes)
        nn.init.zeros_(self.head.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3))  # (B, C, S, S) -> (B, feature_dim)
