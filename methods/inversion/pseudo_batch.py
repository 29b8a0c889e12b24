"""What inversion asks of a teacher, and what comes out of it."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Classifying(Protocol):
    """What every teacher says of itself: the pool's ids of its classes, how many, and the size of its images."""

    @property
    def class_ids(self) -> tuple[int, ...]: ...

    @property
    def way(self) -> int: ...

    @property
    def image_size(self) -> int: ...


class Invertible(Classifying, Protocol):
    """What white-box inversion needs: logits (B, way) of images (B, C, H, W) in [0, 1], and the network inside.

    Teachers of one `kind` differ in their numbers alone, so that one computation can be mapped over them.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def kind(self) -> Hashable: ...

    def __call__(self, images: Tensor) -> Tensor: ...

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class PseudoBatch:
    """What one teacher gave back: images (M, C, h, w) in [0, 1], labels (M,) in 0..way-1, the classes' ids in the pool."""

    images: Tensor
    labels: Tensor
    class_ids: tuple[int, ...]


def labels_of(teacher: Classifying, images_per_class: int, device: torch.device | None = None) -> Tensor:
    """Labels (way * images_per_class,), grouped by class."""
    return torch.arange(teacher.way, device=device).repeat_interleave(images_per_class)
