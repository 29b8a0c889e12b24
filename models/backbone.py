"""What every network here is: features and a linear head."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # channels -> normalisation layer


@dataclass
class Channels:
    """Channels whose order is free: the modules that write them, first of all the one nearest the images, and that read them.

    Put the outputs of all writers and the inputs of all readers into another order, and the network computes the same. By the
    first `compared` writers, a convolution and what normalises it, channels of two networks are told to be alike.
    """

    writers: list[str]
    readers: list[str] = field(default_factory=list)
    compared: int = 2


class Backbone(nn.Module):
    """Maps images (B, C, S, S) to logits (B, num_classes) by a linear `head` on `features` (B, feature_dim)."""

    head: nn.Linear

    @property
    def loadable(self) -> nn.Module:
        """The module that a state_dict of this network belongs to."""
        return self

    @property
    def feature_dim(self) -> int:
        return self.head.in_features

    def channels(self) -> list[Channels]:
        """Every group of channels, from the images up. Raises `NotImplementedError` where nobody has said."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass: (B, feature_dim) and (B, num_classes)."""
        features = self.features(x)
        return features, self.head(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.features_and_logits(x)[1]


def init_conv(conv: nn.Conv2d) -> nn.Conv2d:
    """He initialisation by the number of outputs a filter touches, as in the papers' networks."""
    fan_out = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels
    nn.init.normal_(conv.weight, 0.0, math.sqrt(2.0 / fan_out))
    return conv
