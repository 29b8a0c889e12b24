"""Inversion of a black box: gradients estimated from its answers alone (BiDf-MKD; Hu et al., ICML 2023).

An API takes an image and gives probabilities back. The slope of a loss of those probabilities is measured along random
directions, and the estimate is handed to the generator as if it were a gradient. Everything runs in IEEE float32: the
differences are so small that bf16 or TF32 would leave nothing but rounding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.inversion.pseudo_batch import Classifying
from methods.inversion.terms import Logits, Weights, adversarial_terms, contender
from methods.services.black_box import log_answers

IMAGES_AT_ONCE = 2048  # sent together where --numsplit does not say
GREY_LEVEL = 1 / 255


class Answering(Classifying, Protocol):
    """A service as inversion sees it: probabilities (B, way) of images (B, C, h, w) in [0, 1], as `as_sent` rounds them."""

    def query(self, images: Tensor) -> Tensor: ...

    def as_sent(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ZerothOrder:
    """How a gradient is estimated.

    radius: length of a step, in the service's pixels. queries: of an image and an estimate. chunks: parts in which the
    directions are sent (None: as memory allows). antithetic: look both ways along half as many directions.
    """

    radius: float
    queries: int
    chunks: int | None = None
    antithetic: bool = False

    @property
    def directions(self) -> int:
        return max(1, self.queries // 2) if self.antithetic else self.queries

    @property
    def asked(self) -> int:
        """Images that are sent for one estimate of an image's gradient, that of the image itself not counted."""
        return 2 * self.directions if self.antithetic else self.directions


def unit_directions(count: int, like: Tensor) -> Tensor:
    """`count` random directions of length 1 for each image of `like` (B, C, h, w): (count, B, C, h, w).

    Each is drawn by itself, so the chunks they are used in change nothing.
    """
    drawn = torch.empty((count, *like.shape), dtype=like.dtype, device=like.device)
    for direction in drawn:
        direction.normal_()
    return drawn.div_(torch.linalg.vector_norm(drawn, dim=(2, 3, 4), keepdim=True))


@torch.no_grad()
def estimate_gradient(
    losses: Callable[[Tensor], Tensor],
    x: Tensor,
    base: Tensor,
    settings: ZerothOrder,
    as_sent: Callable[[Tensor], Tensor] = lambda images: images,
) -> Tensor:
    """The gradient of each image's own loss, estimated from loss values: (B, C, h, w).

    Forward: (d/q) * sum_j u_j (L(x + mu u_j) - L(x)) / mu over q random unit directions (Hu et al., 2023). Antithetic:
    (d/p) * sum_j u_j (L(x + mu u_j) - L(x - mu u_j)) / (2 mu) over p = q/2 of them, whose error is of second order in
    mu. d is the number of an image's values. x (B, C, h, w); `losses` maps (k * B, C, h, w), k copies of the batch one
    after another, to (k * B,); `base` (B,) is its value at x. Where the service rounds (`as_sent`), the differences that
    were really sent stand for mu u_j.
    """
    batch, dimension = len(x), x[0].numel()
    count = settings.directions
    most = max(1, IMAGES_AT_ONCE // batch) if settings.chunks is None else math.ceil(count / settings.chunks)
    start = as_sent(x)
    total = torch.zeros_like(x)
    for first in range(0, count, most):
        steps = settings.radius * unit_directions(min(most, count - first), x)  # (k, B, C, h, w)
        there = as_sent(x + steps)

        def values(images: Tensor) -> Tensor:
            return losses(images.flatten(0, 1)).view(-1, batch)  # (k, B)

        if settings.antithetic:
            back = as_sent(x - steps)
            moved, change = there - back, values(there) - values(back)
        else:
            moved, change = there - start, values(there) - base
        length = moved.flatten(2).square().sum(2).clamp(min=1e-20)  # (k, B), squared
        total += ((change / length)[..., None, None, None] * moved).sum(0)
    return total * (dimension / count)


def black_box_loss(
    weights: Weights,
    service: Answering,
    images: Tensor,
    labels: Tensor,
    estimator: ZerothOrder,
    student: Logits | None = None,
) -> Tensor:
    """ce * CE + adv * adversarial from a service's probabilities: an exact value, with an estimated gradient.

    images (B, C, h, w) in [0, 1]. The adversarial term depends on them through the service (estimated, with the student's
    answers and the mask of agreement held fixed) and through the student (exact, with the service's answers held fixed).
    Other terms would need to see more than answers.
    """
    detached = images.detach()
    answers = log_answers(service.query(detached))  # (B, N)
    ce, adv = weights["ce"], weights.get("adv", 0.0) if student is not None else 0.0
    mine = contender(student, weights)(images) if student is not None and adv else answers
    fixed = mine.detach()
    agree = answers.argmax(1) == fixed.argmax(1)

    def terms(theirs: Tensor, mine: Tensor) -> Tensor:
        copies = len(theirs) // len(detached)
        cross_entropy = F.cross_entropy(theirs, labels.repeat(copies), reduction="none")
        return ce * cross_entropy + adv * adversarial_terms(theirs, mine, agree.repeat(copies))

    def losses(sent: Tensor) -> Tensor:
        theirs = log_answers(service.query(sent))
        return terms(theirs, fixed.repeat(len(sent) // len(detached), 1))

    estimate = estimate_gradient(losses, detached, terms(answers, fixed), estimator, service.as_sent) / len(detached)
    exact = terms(answers, mine).mean()  # its gradient goes through the student alone
    return exact + (estimate * (images - detached)).sum()  # adds nothing to the value, the estimate to the gradient


def radius_of(mu: float, std: Sequence[float]) -> float:
    """The length in [0, 1] pixels of a step that is `mu` long in pixels normalised by `std`."""
    return mu * sum(std) / len(std)


def least_mu(image_size: int, std: Sequence[float]) -> float:
    """The least mu whose steps change the pixels of an 8-bit image by a grey level on average (root mean square)."""
    return GREY_LEVEL * math.sqrt(len(std) * image_size**2) / radius_of(1.0, std)
