"""Images that cost no model anything: noise with the spectrum of natural images, and dead leaves.

Distillation needs inputs that make teachers say different things, not inputs of their classes; images of simple random
processes do (Baradad et al., Learning to See by Looking at Noise, NeurIPS 2021).
"""

import torch
from torch import Tensor

MIXING = 0.8  # how far colour channels follow a common pattern: natural images are nearly grey


def frequencies(size: int, device: torch.device) -> Tensor:
    """In cycles a pixel, of the spectrum of a real image: (size, size // 2 + 1)."""
    rows, columns = torch.fft.fftfreq(size, device=device)[:, None], torch.fft.rfftfreq(size, device=device)[None]
    return (rows.square() + columns.square()).sqrt()


def falling_noise(
    count: int,
    size: int,
    device: torch.device,
    channels: int = 3,
    mixing: float = MIXING,
    slopes: tuple[float, float] = (0.5, 2.0),
) -> Tensor:
    """Noise whose amplitude falls as 1 / frequency^a, a uniform in `slopes` for each image: (count, channels, size, size).

    Each has mean 0 in every channel, and standard deviation 1; `mixing` is how far channels follow a common pattern.
    """
    frequency = frequencies(size, device).clamp(min=1 / size)
    slope = slopes[0] + (slopes[1] - slopes[0]) * torch.rand(count, 1, 1, 1, device=device)
    white = torch.randn(count, channels, size, size, device=device)
    common = torch.randn(count, 1, size, size, device=device)
    spectrum = torch.fft.rfft2(mixing * common + (1 - mixing**2) ** 0.5 * white) * frequency**-slope
    images = torch.fft.irfft2(spectrum, s=(size, size))
    centred = images - images.mean((2, 3), keepdim=True)
    return centred / centred.std((1, 2, 3), keepdim=True).clamp(min=1e-6)


def spectral_noise(count: int, size: int, device: torch.device, channels: int = 3) -> Tensor:
    """Such noise at a random mean and contrast, in [0, 1]: (count, channels, size, size)."""
    unit = falling_noise(count, size, device, channels)
    contrast = 0.1 + 0.2 * torch.rand(count, 1, 1, 1, device=device)
    shift = 0.3 + 0.4 * torch.rand(count, channels, 1, 1, device=device)
    return (unit * contrast + shift).clamp(0, 1)


def dead_leaves(count: int, size: int, device: torch.device, channels: int = 3, leaves: int = 48) -> Tensor:
    """Discs and boxes of random colour that cover each other, small ones more often: (count, channels, size, size).

    Radii follow a density of 1 / r^3 as in natural scenes (Lee, Mumford and Huang, IJCV 2001), between 1/16 and 1/2 of
    the side; the last leaf lies on top.
    """
    images = torch.rand(count, channels, 1, 1, device=device).expand(-1, -1, size, size)
    axis = torch.arange(size, device=device) / size
    smallest, largest = 1 / 16, 1 / 2
    for _ in range(leaves):
        chance = torch.rand(count, 1, 1, device=device)
        radius = (smallest**-2 + chance * (largest**-2 - smallest**-2)) ** -0.5  # inverse of the cumulative density
        down, right = (axis.view(shape) - torch.rand(count, 1, 1, device=device) for shape in ((1, -1, 1), (1, 1, -1)))
        stretch = 2 ** (2 * torch.rand(count, 1, 1, device=device) - 1)
        disc = (down * stretch).square() + (right / stretch).square() < radius.square()
        box = ((down * stretch).abs() < radius) & ((right / stretch).abs() < radius)
        leaf = torch.where(torch.rand(count, 1, 1, device=device) < 0.5, disc, box)[:, None]  # (count, 1, size, size)
        images = torch.where(leaf, torch.rand(count, channels, 1, 1, device=device), images)
    return images


def procedural_images(count: int, size: int, device: torch.device, channels: int = 3) -> Tensor:
    """A third of noise, of dead leaves, and of leaves with noise as texture, in [0, 1]: (count, channels, size, size)."""
    noise, leaves = spectral_noise(count, size, device, channels), dead_leaves(count, size, device, channels)
    strength = 0.5 * torch.rand(count, 1, 1, 1, device=device)
    textured = (leaves + strength * (noise - 0.5)).clamp(0, 1)
    kind = torch.randint(3, (count, 1, 1, 1), device=device)
    return torch.where(kind == 0, noise, torch.where(kind == 1, leaves, textured))
