"""Images and labels as Python code has them: tensors, arrays, Pillow's pictures and paths, to what a learner takes."""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.image_files import decode, shrink
from utils.errors import UserError
from utils.images import resize, to_float
from utils.names import tidy

ROUNDING = 1e-3  # by which floats may leave [0, 1], as resized ones do


def as_images(given: Any, size: int) -> Tensor:
    """A batch of images, uint8 or float in [0, 1], (M, 3, H, W).

    given: a tensor or array (M, 3, H, W), (M, H, W, 3), or grey (M, 1, H, W), (M, H, W, 1), (M, H, W), of bytes or of floats
    in [0, 1]; or a sequence of paths, Pillow pictures and single images of those kinds, which are brought to `size` pixels
    where they differ. Raises `UserError` for numbers of another range, and for anything else.
    """
    if isinstance(given, np.ndarray) and given.size and all(isinstance(one, (str, Path)) for one in given.flat):
        given = given.tolist()  # of paths, as scikit-learn hands them on
    if isinstance(given, (Tensor, np.ndarray)):
        return _batch(_plain(given))
    if isinstance(given, Sequence) and not len(given):
        raise UserError("images are an empty list; expected one or more")
    if isinstance(given, (str, Path, Image.Image)) or not isinstance(given, Sequence):
        raise UserError(f"images are {type(given).__name__}; expected a tensor, an array, or a list of pictures or paths")
    images = [_one(image, size) for image in given]
    if len({image.shape for image in images}) > 1 or len({image.dtype for image in images}) > 1:
        images = [resize(image if image.is_floating_point() else to_float(image), size) for image in images]
    return torch.cat(images)


def _one(image: Any, size: int) -> Tensor:
    if isinstance(image, (str, Path)):
        return torch.from_numpy(decode(Path(image), size).copy())[None]
    if isinstance(image, Image.Image):
        try:
            return torch.from_numpy(shrink(image, size, "a picture").copy())[None]
        except ValueError as error:  # of one that was closed
            raise UserError(f"a picture cannot be read: {error}") from error
    if isinstance(image, (Tensor, np.ndarray)):
        return _batch(_plain(image)[None])
    raise UserError(f"an image is {type(image).__name__}; expected a path, a Pillow picture, a tensor or an array")


def _plain(given: Tensor | np.ndarray) -> Tensor:
    """A dense tensor of a kind of number that torch reckons with, of whatever numpy has."""
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "uifb":
            raise UserError(f"images are an array of {given.dtype}; expected bytes or floats")
        if given.dtype.kind == "u" and given.dtype.itemsize > 1:
            given = given.astype(np.int64)
        return torch.from_numpy(np.ascontiguousarray(given, given.dtype.newbyteorder("=")))
    if given.is_sparse or given.is_complex():
        raise UserError("images are a sparse or complex tensor; expected bytes or floats")
    return given.to(torch.int64) if given.dtype in (torch.uint16, torch.uint32, torch.uint64) else given


def _batch(images: Tensor) -> Tensor:
    if images.ndim == 3 and 3 in (images.shape[0], images.shape[2]):
        raise UserError(
            f"images have the shape {tuple(images.shape)}, which may be one in colour: expected (1, 3, H, W) for one"
        )
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise UserError(f"images have the shape {tuple(images.shape)}; expected (M, 3, H, W) or (M, H, W, 3)")
    low, high = images.min().item(), images.max().item()
    if images.is_floating_point():
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also where one is not a number
            how = "divide by 255" if low >= 0 and high <= 255 else "take the normalisation away: it is the learner's own"
            raise UserError(f"images lie between {low:.4g} and {high:.4g}; expected floats in [0, 1] or bytes: {how}")
        if 0 < high <= 1 / 255 + ROUNDING:
            raise UserError(f"images lie between {low:.4g} and {high:.4g}, all but black: were they divided by 255 twice?")
        images = images.to(torch.get_default_dtype()).clamp(0, 1)
    elif images.dtype != torch.uint8 and (low, high) == (0, 1):
        raise UserError(f"images are {images.dtype} of 0 and 1; expected bytes from 0 to 255, or floats if 1 is white")
    elif images.dtype == torch.bool or low < 0 or high > 255:
        raise UserError(f"images are {images.dtype} between {low} and {high}; expected bytes from 0 to 255 or floats in [0, 1]")
    else:
        images = images.to(torch.uint8)
    return images.expand(-1, 3, -1, -1)


def as_labels(given: Any) -> list[Hashable]:
    """A plain value for each image, of a sequence, tensor or array of one dimension. Raises `UserError` for others."""
    if len(getattr(given, "shape", (0,))) != 1:
        raise UserError(f"labels have the shape {tuple(given.shape)}; expected one class for each image")
    if hasattr(given, "tolist"):  # of a tensor, an array, a column of a table
        given = given.tolist()
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"labels are {given!r:.60}; expected a list with a class for each image")
    labels = [
        label.item() if isinstance(label, (Tensor, np.generic, np.ndarray)) and label.ndim == 0 else label for label in given
    ]
    for label in labels:
        if not isinstance(label, (str, int, float)) or label != label:  # a number that is none differs from itself
            raise UserError(f"the label {label!r} is no class: expected a name or a number")
    return [tidy(label) if isinstance(label, str) else label for label in labels]
