"""How an embedding is read before its class means are compared: as it is, over mirror images, half whitened."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.inversion.natural import natural_images
from methods.inversion.procedural import procedural_images
from utils import seed
from utils.images import to_uint8

READOUTS = ("plain", "mirror", "whitened")
PROBES = 4000  # images of nobody that a whitening is fitted to, two natural ones for each procedural
AT_ONCE = 500
FLOOR = 1e-3  # of the largest singular value: what lies far below is noise, and is not blown up

Embedding = Callable[[Tensor], Tensor]  # images (B, C, S, S) -> (B, D)


@dataclass(frozen=True)
class Readout:
    """What is done to an embedding (B, D), and kept with the learner whose embedding it is.

    mirror: an image counts with the mean of its own embedding and its mirror image's. matrix (D, R): what that is
    multiplied by, and then scaled to length 1.
    """

    mirror: bool = False
    matrix: Tensor | None = None

    def __call__(self, embed: Embedding, images: Tensor) -> Tensor:
        """What is read of images (B, C, S, S): (B, D), or (B, R)."""
        read = embed(images)
        if self.mirror:
            read = (read + embed(images.flip(-1))) / 2
        return read if self.matrix is None else F.normalize(read @ self.matrix)

    def state_dict(self) -> dict[str, Any]:
        return {"mirror": self.mirror, "matrix": self.matrix}


PLAIN = Readout()


def half_whitening(embeddings: Tensor) -> Tensor:
    """V (S + s_1 / 1000)^-1/2 of embeddings (M, D) = U S V^T, with s_1 the largest of S: (D, min(M, D)).

    The directions in which embeddings differ little count for more, but less than in a whitening, whose power is -1;
    nothing is centred. (This project's own.)
    """
    rows = embeddings.double()
    wide = rows.shape[1] > rows.shape[0]
    squares, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)  # ascending
    singular = squares.clamp(min=0).sqrt()
    if wide:
        vectors = rows.T @ (vectors / singular.clamp(min=FLOOR * singular[-1]))  # U to V
    return (vectors * (singular + FLOOR * singular[-1]).rsqrt()).to(embeddings.dtype)


@lru_cache(maxsize=1)  # drawing them takes longer than looking at them
@torch.no_grad()
def probes(count: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The uint8 images (count, 3, size, size) of nobody that every learner's read-out is fitted to.

    dtype: PyTorch's default one, in which random numbers are drawn.
    """
    natural = count * 2 // 3
    with seed.kept(0):
        parts = [
            to_uint8(make(len(some), size, device))
            for make, share in ((natural_images, natural), (procedural_images, count - natural))
            for some in torch.arange(share).split(AT_ONCE)
        ]
    return torch.cat(parts)


@torch.no_grad()
def fit_readout(words: Sequence[str], embed: Embedding, size: int, device: torch.device, flip: bool = True) -> Readout:
    """The read-out that `words` (of `READOUTS`) name, for an embedding of uint8 images (B, C, size, size).

    flip: whether a mirror image shows the same class; where it does not, none is looked at.
    """
    readout = Readout(mirror=True) if "mirror" in words and flip else PLAIN
    if "whitened" not in words:
        return readout
    embeddings = [readout(embed, some) for some in probes(PROBES, size, device, torch.get_default_dtype()).split(AT_ONCE)]
    return Readout(readout.mirror, half_whitening(torch.cat(embeddings)))
