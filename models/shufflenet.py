"""ShuffleNet V2 for small images (Ma et al., ECCV 2018), as data-free distillation uses it: a stem of single pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import Backbone, Norm

STEM, WIDTHS, DEPTHS, LAST = 24, (116, 232, 464), (3, 7, 3), 1024  # of the network of size 1


def interleaved(x: Tensor) -> Tensor:
    """The channels of both halves of x (B, C, H, W) in turn."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class Unit(nn.Module):
    """Half of the channels pass; the other half goes through a bottleneck with one filter a channel."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.norm1 = nn.Conv2d(half, half, 1, bias=False), norm(half)
        self.conv2, self.norm2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), norm(half)
        self.conv3, self.norm3 = nn.Conv2d(half, half, 1, bias=False), norm(half)

    def forward(self, x: Tensor) -> Tensor:
        kept, moved = x.chunk(2, 1)  # (B, C/2, H, W) each
        moved = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(moved)))))
        moved = F.relu(self.norm3(self.conv3(moved)))
        return interleaved(torch.cat([kept, moved], 1))


class Halving(nn.Module):
    """Two ways over all channels, each half as large and giving half of `width`."""

    def __init__(self, given: int, width: int, norm: Norm) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.norm1 = nn.Conv2d(given, given, 3, 2, 1, groups=given, bias=False), norm(given)
        self.conv2, self.norm2 = nn.Conv2d(given, half, 1, bias=False), norm(half)
        self.conv3, self.norm3 = nn.Conv2d(given, half, 1, bias=False), norm(half)
        self.conv4, self.norm4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False), norm(half)
        self.conv5, self.norm5 = nn.Conv2d(half, half, 1, bias=False), norm(half)

    def forward(self, x: Tensor) -> Tensor:
        short = F.relu(self.norm2(self.conv2(self.norm1(self.conv1(x)))))
        long = self.norm4(self.conv4(F.relu(self.norm3(self.conv3(x)))))
        long = F.relu(self.norm5(self.conv5(long)))
        return interleaved(torch.cat([short, long], 1))  # (B, width, H/2, W/2)


class ShuffleNetV2(Backbone):
    """Three stages, each a halving and some units, and a last layer of 1,024 channels, averaged over the image."""

    def __init__(self, num_classes: int, norm: Norm, channels: int = 3) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(channels, STEM, 1, bias=False), norm(STEM)
        blocks: list[nn.Module] = []
        for given, width, depth in zip((STEM, *WIDTHS), WIDTHS, DEPTHS, strict=False):
            blocks += [Halving(given, width, norm), *(Unit(width, norm) for _ in range(depth))]
        self.blocks = nn.Sequential(*blocks)
        self.last, self.last_norm = nn.Conv2d(WIDTHS[-1], LAST, 1, bias=False), norm(LAST)
        self.head = nn.Linear(LAST, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem_norm(self.stem(x))))  # (B, C, S, S) -> (B, 464, S/8, S/8)
        return F.relu(self.last_norm(self.last(x))).mean((2, 3))  # (B, 1024)
