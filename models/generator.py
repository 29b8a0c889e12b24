"""The generator of pseudo-images that the papers share, and one that is told the class."""

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import UserError
from utils.images import channels_last


class UpsampleConv(nn.Module):
    """Nearest up-sampling by two followed by a 3x3 convolution, in one transposed convolution.

    Up-sampling repeats each pixel, so several of the nine taps read the same input pixel. Adding those taps gives a
    4x4 kernel with stride 2 that computes exactly the same output with 4/9 of the multiplications. It has no bias: the
    normalisation after it takes the batch's mean away, and a bias with it.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Conv2d(in_channels, out_channels, 3, bias=False).weight  # (out, in, 3, 3), initialised
        # row t of the matrix lists which of the three taps fall into tap t of the stride-2 kernel
        taps = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        self.register_buffer("taps", taps, persistent=False)
        self.taps: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = torch.einsum("oihw,yh,xw->ioyx", self.weight, self.taps, self.taps)  # (in, out, 4, 4)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1)


def _check_doubles_twice(image_size: int) -> None:
    if image_size % 4:
        raise UserError(f"the generator doubles twice: image size {image_size} is no multiple of 4; change --image_size")


def _doubled_twice(width: int, channels: int) -> nn.Sequential:
    """(B, 2 * width, S/4, S/4) to images (B, channels, S, S)."""
    return nn.Sequential(
        nn.BatchNorm2d(2 * width, track_running_stats=False),
        UpsampleConv(2 * width, 2 * width),
        nn.BatchNorm2d(2 * width, track_running_stats=False),
        nn.LeakyReLU(0.2, inplace=True),
        UpsampleConv(2 * width, width),
        nn.BatchNorm2d(width, track_running_stats=False),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(width, channels, 3, padding=1),
        nn.Sigmoid(),
    )


class Generator(nn.Module):
    """Latent z (B, latent_dim) to images (B, channels, S, S) in [0, 1]; S must be a multiple of 4 (`UserError`).

    Linear to 128 x S/4 x S/4, then twice up-sampling and convolution with normalisation and LeakyReLU, a last
    convolution and a sigmoid. Normalisation is by the statistics of the batch at hand, always.
    """

    def __init__(self, image_size: int, channels: int = 3, latent_dim: int = 256, width: int = 64) -> None:
        super().__init__()
        _check_doubles_twice(image_size)
        self.latent_dim = latent_dim
        self.seed_shape = (2 * width, image_size // 4, image_size // 4)
        self.expand = nn.Linear(latent_dim, 2 * width * (image_size // 4) ** 2)
        self.layers = _doubled_twice(width, channels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.expand(z).unflatten(1, self.seed_shape)  # (B, latent_dim) -> (B, 2 width, S/4, S/4)
        return self.layers(channels_last(x))

    def reset_first_layers(self) -> None:
        """Draw the linear layer and the normalisation after it anew: weights from N(0, .02), biases 0 (Fast-Datafree)."""
        norm = self.layers[0]
        assert isinstance(norm, nn.BatchNorm2d)
        for layer in (self.expand, norm):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            nn.init.zeros_(layer.bias)

    def redraw(self) -> "Generator":
        """Draw everything anew: weights from N(0, .02), scales of normalisations from N(1, .02), biases 0; returns itself."""
        for layer in (self.expand, *self.layers):
            if isinstance(layer, (nn.Linear, nn.Conv2d, UpsampleConv)):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)
                nn.init.zeros_(layer.bias)
        return self


class ConditionalGenerator(Generator):
    """A generator for images of the given classes: `labels` (B,) in 0..way-1, in the order of the latents.

    A linear layer of the latent and one of the one-hot label, each to `width` x S/4 x S/4, side by side; the rest is the
    same (TEAPOT; Hu et al., 2023).
    """

    def __init__(self, image_size: int, labels: torch.Tensor, way: int, latent_dim: int = 256, width: int = 64) -> None:
        nn.Module.__init__(self)  # the parts are other ones, in another order
        _check_doubles_twice(image_size)
        self.latent_dim = latent_dim
        self.part_shape = (width, image_size // 4, image_size // 4)
        self.expand = nn.Linear(latent_dim, width * (image_size // 4) ** 2)
        self.expand_label = nn.Linear(way, width * (image_size // 4) ** 2)
        self.register_buffer("one_hot", F.one_hot(labels, way).to(torch.get_default_dtype()), persistent=False)
        self.one_hot: torch.Tensor
        self.layers = _doubled_twice(width, 3)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        parts = self.expand(z), self.expand_label(self.one_hot)  # (B, width * S/4 * S/4) each
        return self.layers(channels_last(torch.cat([part.unflatten(1, self.part_shape) for part in parts], 1)))

    def redraw(self) -> "ConditionalGenerator":
        super().redraw()
        nn.init.normal_(self.expand_label.weight, 0.0, 0.02)
        nn.init.zeros_(self.expand_label.bias)
        return self
