"""Images in the manner of photographs, made by nobody's data: things before things, each with its own texture and light.

Distillation needs images that make teachers say different things (Baradad et al., Learning to See by Looking at Noise,
NeurIPS 2021). Teachers of photographs differ most on images whose statistics are a photograph's: nearly grey colours, edges
between textured and shaded surfaces, things of all sizes. This project's own.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from methods.inversion.procedural import falling_noise, frequencies
from utils.images import resize, shift_and_flip, to_float

LEAVES = 8  # things in an image
SMALLEST, LARGEST = 1 / 12, 0.6  # their radii, in sides, of a density that falls as 1 / r^2
TEXTURES = 4  # of an image, shared by its things
COLOUR = 0.12  # at most, how far a colour strays from grey
CONTRAST = 0.5  # at most, how strong a texture is
BENT = 0.12  # sides at most, how far outlines are bent
LIGHT = 0.1  # how much the light changes over a thing
BLUR = 0.8  # pixels at most


def natural_images(count: int, size: int, device: torch.device, channels: int = 3) -> Tensor:
    """Bent ellipses and boxes that cover each other, in [0, 1]: (count, channels, size, size).

    Each has a nearly grey colour near its image's brightness, one of the image's textures and a light that falls from one
    side; then all is blurred a little.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, device=device)

    axis = torch.arange(size, device=device) / size
    bent = BENT * uniform(1, 1, 1) * falling_noise(count, size, device, channels=2, mixing=0, slopes=(3.0, 3.0))
    rows, columns = axis.view(1, -1, 1) + bent[:, 0], axis.view(1, 1, -1) + bent[:, 1]  # (count, size, size)
    textures = torch.stack([falling_noise(count, size, device, channels, mixing=0.9) for _ in range(TEXTURES)], 1)
    brightness, spread, colourful = uniform(1, 1, 1), 0.5 + 0.5 * uniform(1, 1, 1), COLOUR * uniform(1, 1, 1)

    def surface(down: Tensor, right: Tensor) -> Tensor:
        """A thing's colour, texture and light, all over the image: distances (count, size, size) from its middle."""
        grey = brightness + spread * (uniform(1, 1, 1) - brightness)
        tint = torch.randn(count, channels, 1, 1, device=device)
        colour = grey + colourful * (tint - tint.mean(1, keepdim=True))
        texture = textures[torch.arange(count, device=device), torch.randint(TEXTURES, (count,), device=device)]
        shifted = texture.roll(torch.randint(size, (2,)).tolist(), (2, 3))
        falls = LIGHT * torch.randn(2, count, 1, 1, device=device)
        return colour + CONTRAST * uniform(1, 1, 1) * uniform(1, 1, 1) * shifted + (falls[0] * down + falls[1] * right)[:, None]

    images = surface(3 * (rows - 0.5), 3 * (columns - 0.5))
    for _ in range(LEAVES):
        radius = 1 / (1 / SMALLEST + uniform(1, 1) * (1 / LARGEST - 1 / SMALLEST))  # inverse of the cumulative density
        down, right = rows - uniform(1, 1), columns - uniform(1, 1)
        angle, stretch = math.pi * uniform(1, 1), 2 ** (2 * uniform(1, 1) - 1)
        along = (down * angle.cos() + right * angle.sin()) * stretch / radius
        across = (right * angle.cos() - down * angle.sin()) / stretch / radius
        power = torch.where(uniform(1, 1) < 0.5, 2.0, 6.0)  # an ellipse, a rounded box
        inside = (along.abs() ** power + across.abs() ** power < 1)[:, None]  # (count, 1, size, size)
        images = torch.where(inside, surface(down / radius, right / radius), images)
    return _blurred(images, BLUR * uniform(1, 1, 1)).clamp(0, 1)


def _blurred(images: Tensor, widths: Tensor) -> Tensor:
    """Images (B, C, S, S) under Gaussians of standard deviations `widths` (B, 1, 1, 1), in pixels."""
    size = images.shape[-1]
    kept = torch.exp(-2 * (math.pi * widths * frequencies(size, images.device)).square())
    return torch.fft.irfft2(torch.fft.rfft2(images) * kept, s=(size, size))


@lru_cache(maxsize=1)
def _photographs() -> tuple[Tensor, ...]:
    """The two that scikit-learn comes with, uint8 (3, 427, 640) each."""
    from sklearn.datasets import load_sample_images

    return tuple(torch.from_numpy(photograph.copy()).permute(2, 0, 1) for photograph in load_sample_images().images)


def photo_crops(count: int, size: int, device: torch.device, channels: int = 3) -> Tensor:
    """Squares of two photographs, of every size, mirrored and recoloured at random, in [0, 1]: (count, channels, size, size).

    They are `china.jpg` by danielbuechele and `flower.jpg` by vultilion, CC BY 2.0, as scikit-learn has them. Not data-free.
    """
    photographs, crops = _photographs(), []
    edge = min(min(photograph.shape[1:]) for photograph in photographs)
    smallest = min(size, edge)
    for which, scale, down, right in torch.rand(count, 4).tolist():
        photograph = photographs[int(which * len(photographs))]
        side = round(smallest + scale**2 * (edge - smallest))
        top, left = (
            int(share * (length - side + 1)) for share, length in zip((down, right), photograph.shape[1:], strict=True)
        )
        crops.append(resize(to_float(photograph[None, :channels, top : top + side, left : left + side]), size))
    images = shift_and_flip(torch.cat(crops).to(device), padding=0)
    colours = torch.eye(channels, device=device) + 0.25 * torch.randn(count, channels, channels, device=device)
    return (torch.einsum("bdc,bchw->bdhw", colours, images - 0.5) + 0.5).clamp(0, 1)
