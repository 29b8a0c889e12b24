"""Pictures as tensors: bytes to floats and back, normalisation, resizing, augmentation, grids for people."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.files import atomic_path
from utils.vision import import_torchvision

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in grey


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 (..., C, H, W) to floats in [0, 1], of the default dtype."""
    return images.to(torch.get_default_dtype()).div_(255.0)


def fitting_count(count: int, size: int) -> int:
    """How many images of `size` pixels a side take at most the memory of `count` with 84: from 1 to `count`."""
    return max(1, min(count, count * 84**2 // size**2))


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float in [0, 1] to uint8, rounded; values outside are clipped."""
    return (images.detach() * 255.0).round_().clamp_(0, 255).to(torch.uint8)


def grey(x: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) without colour: (B, 1, H, W)."""
    return (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(x - mean) / std per channel, for images (..., C, H, W) in [0, 1] or uint8; float, in the layout of `images`."""
    white = 1.0
    if images.dtype == torch.uint8:
        images, white = images.to(torch.get_default_dtype()), 255.0
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), white, images.dtype, images.device)
    if images.ndim == 4 and is_channels_last(images):
        rows = images.permute(0, 2, 3, 1).flatten(2)  # (B, H, W * C), a view: arithmetic is fast on long rows alone
        wide_scale, wide_shift = (part.flatten().repeat(images.shape[-1]) for part in (scale, shift))
        done = torch.addcmul(wide_shift, rows, wide_scale)
        return done.unflatten(2, (images.shape[-1], len(scale))).permute(0, 3, 1, 2)
    return torch.addcmul(shift, images, scale)  # in one pass


@lru_cache(maxsize=64)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], white: float, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """1 / (white * std) and -mean / std, (C, 1, 1) each: made once, so that no step waits for a copy to the device."""
    exact_mean, exact_std = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (mean, std))
    scale, shift = 1 / (white * exact_std), -exact_mean / exact_std
    return scale.to(device, dtype), shift.to(device, dtype)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, anti-aliased, differentiable; (B, C, H, W) to (B, C, size, size). Images of that size pass unchanged."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """The memory layout that convolutions of float32 on a CPU run fastest in; copied only where it is another one.

    Written so that it can be mapped over with `vmap`, which `contiguous(memory_format=...)` cannot.
    """
    return images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def is_channels_last(images: torch.Tensor) -> bool:
    """Whether images (N, C, H, W) lie in that layout."""
    return images.permute(0, 2, 3, 1).is_contiguous()


def rows_of(images: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W) as one row each, in the order in which their values lie in memory: a view."""
    return (images.permute(0, 2, 3, 1) if is_channels_last(images) else images).flatten(1)


def take(images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, W) at `index` (...): (..., C, H, W) in the layout of `images`; differentiable.

    Each is copied as one block, ten times faster on a CPU than indexing by a tensor.
    """
    _, channels, height, width = images.shape
    taken = rows_of(images).index_select(0, index.flatten())
    if is_channels_last(images):
        return taken.view(-1, height, width, channels).permute(0, 3, 1, 2).unflatten(0, index.shape)
    return taken.view(*index.shape, channels, height, width)


def shift_and_flip(images: torch.Tensor, padding: int = 4, flip: bool = True) -> torch.Tensor:
    """Zero-pad, cut at a random place and mirror at random, for each image of (B, C, H, W) by itself; differentiable."""
    batch, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, (padding,) * 4)  # (B, C, H + 2p, W + 2p)
    rows = torch.arange(height, device=device) + torch.randint(2 * padding + 1, (batch, 1), device=device)  # (B, H)
    columns = torch.arange(width, device=device) + torch.randint(2 * padding + 1, (batch, 1), device=device)  # (B, W)
    if flip:
        mirrored = torch.rand(batch, 1, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(batch, device=device)[:, None, None]
    pixels = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return pixels.permute(0, 3, 1, 2)  # in channels-last layout


def recolour(images: torch.Tensor) -> torch.Tensor:
    """Permute the colour channels at random and invert each at random, for each image of (B, C, H, W) in [0, 1] by itself."""
    batch, channels = images.shape[:2]
    order = torch.rand(batch, channels, device=images.device).argsort(1)  # (B, C)
    mixed = images.gather(1, order[:, :, None, None].expand_as(images))
    inverted = torch.rand(batch, channels, 1, 1, device=images.device) < 0.5
    return torch.where(inverted, 1 - mixed, mixed)


@dataclass(frozen=True)
class ImageForm:
    """How a network wants its images: their side in pixels, and the mean and std of each channel of images in [0, 1].

    Pixels that mean and std have normalised are in *its scale*.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) in [0, 1], of any size, as the network wants them."""
        return channels_last(normalise(resize(images, self.size), self.mean, self.std))

    def noise(self, count: int, device: torch.device) -> torch.Tensor:
        """Pixels from N(0, 1) in its scale: (count, C, S, S)."""
        return torch.randn(count, len(self.mean), self.size, self.size, device=device)

    def to_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """From its scale to [0, 1]; gradients pass."""
        mean, std = self._mean_and_std(pixels)
        return pixels * std + mean

    def from_images(self, images: torch.Tensor) -> torch.Tensor:
        """From [0, 1] to its scale."""
        mean, std = self._mean_and_std(images)
        return (images - mean) / std

    @torch.no_grad()
    def clip_(self, pixels: torch.Tensor) -> None:
        """Clip pixels of its scale, in place, to what an image can be."""
        mean, std = self._mean_and_std(pixels)
        pixels.clamp_(-mean / std, (1 - mean) / std)

    def _mean_and_std(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (like.new_tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True)
class Augmentation:
    """What may be done to an image without changing its class: shift always, mirror and recolour where it holds."""

    flip: bool = True
    recolour: bool = False

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Change every image of (B, C, H, W) in [0, 1] by itself; differentiable."""
        images = shift_and_flip(images, flip=self.flip)
        return recolour(images) if self.recolour else images


@dataclass(frozen=True)
class Grid:
    """Pictures in rows: uint8 images (N, C, H, W), `columns` of them in a row, and what each row shows, where that is known."""

    images: torch.Tensor
    columns: int
    rows: Sequence[str] = ()


ROWS = "rows"  # the note inside a PNG that says what its rows show


def save_grid(grid: Grid, path: str | Path) -> torch.Tensor:
    """Save a grid as one PNG, which also keeps what its rows show; return its pixels, uint8 (H, W, 3)."""
    import_torchvision()
    from torchvision.utils import make_grid

    tiles = make_grid(grid.images.cpu(), nrow=grid.columns, padding=2, pad_value=255).permute(1, 2, 0)  # (H, W, C)
    notes = PngInfo()
    notes.add_itxt(ROWS, json.dumps(list(grid.rows), ensure_ascii=False))
    with atomic_path(path) as temporary:
        Image.fromarray(tiles.numpy()).save(temporary, pnginfo=notes)
    return tiles


def shown_in_rows(image: Image.Image) -> list[str]:
    """What the rows of an opened grid show; nothing of a picture that does not say."""
    try:
        return [str(row) for row in json.loads(image.info.get(ROWS, "[]"))]
    except (ValueError, TypeError):
        return []
