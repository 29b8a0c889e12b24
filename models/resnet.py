"""ResNets for small images: 3x3 stem, no max-pool, adaptive average pool (the zoo of the papers).

Two families share a name: in the few-shot papers' code no ReLU follows the stem and weights are drawn by He's rule; in
Fast-Datafree's (`standard`) a ReLU follows it and weights are drawn as PyTorch draws them.
"""

import torch
from torch import nn

from models.backbone import Backbone, Channels, Norm, init_conv


def _as_drawn(conv: nn.Conv2d) -> nn.Conv2d:
    return conv


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 convolution with normalisation where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm, standard: bool = False) -> None:
        super().__init__()
        init = _as_drawn if standard else init_conv
        self.conv1 = init(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False))
        self.norm1 = norm(out_channels)
        self.conv2 = init(nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False))
        self.norm2 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            conv = init(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut = nn.Sequential(conv, norm(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions.

    In the few-shot papers' code the 3x3 has a bias and the shortcut no normalisation; `standard` has it the usual way.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm, standard: bool = False) -> None:
        super().__init__()
        init = _as_drawn if standard else init_conv
        width = out_channels // 4
        self.conv1 = init(nn.Conv2d(in_channels, width, 1, bias=False))
        self.norm1 = norm(width)
        self.conv2 = init(nn.Conv2d(width, width, 3, stride, padding=1, bias=not standard))
        self.norm2 = norm(width)
        self.conv3 = init(nn.Conv2d(width, out_channels, 1, bias=False))
        self.norm3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            conv = init(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut = nn.Sequential(conv, norm(out_channels)) if standard else conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        return self.relu(self.norm3(self.conv3(out)) + self.shortcut(x))


class ResNet(Backbone):
    """Stem, a stage of that many blocks for each of `depths`, with `widths` channels, global average, head."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int,
        norm: Norm,
        channels: int = 3,
        standard: bool = False,
        stem: int = 64,
        rectified: bool = False,
    ) -> None:
        """`stem`: its channels; `rectified`: a ReLU follows it, as it does in every `standard` network."""
        super().__init__()
        init = _as_drawn if standard else init_conv
        self.stem = init(nn.Conv2d(channels, stem, 3, padding=1, bias=False))
        self.stem_norm = norm(stem)
        self.after_stem: nn.Module = nn.ReLU(inplace=True) if standard or rectified else nn.Identity()
        blocks, in_channels = [], stem
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(in_channels, width, stride, norm, standard))
                in_channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(in_channels, num_classes)

    def channels(self) -> list[Channels]:
        """Within a block each convolution's outputs; between blocks the stream, from one change of width to the next."""
        stream = Channels(["stem", "stem_norm"])
        groups = [stream]
        for number, block in enumerate(self.blocks):
            name = f"blocks.{number}"
            last = "3" if isinstance(block, Bottleneck) else "2"
            stream.readers.append(f"{name}.conv1")
            ending = [f"{name}.conv{last}", f"{name}.norm{last}"]
            if isinstance(block.shortcut, nn.Identity):
                stream.writers += ending
            else:
                within = (
                    [f"{name}.shortcut"]
                    if isinstance(block.shortcut, nn.Conv2d)
                    else [f"{name}.shortcut.0", f"{name}.shortcut.1"]
                )
                stream.readers.append(within[0])
                stream = Channels([*within, *ending], compared=len(within))
                groups.append(stream)
            groups.append(Channels([f"{name}.conv1", f"{name}.norm1"], [f"{name}.conv2"]))
            if last == "3":
                groups.append(Channels([f"{name}.conv2", f"{name}.norm2"], [f"{name}.conv3"]))
        stream.readers.append("head")
        return groups

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.after_stem(self.stem_norm(self.stem(x)))
        return self.blocks(x).mean((2, 3))  # (B, C, S, S) -> (B, feature_dim)
