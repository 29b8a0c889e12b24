"""Inversion of pixels: the images themselves are the parameters (DeepInversion; Yin et al., CVPR 2020)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.inversion.bn_statistics import record_bn_distances
from methods.inversion.stacked import Stack, alike
from methods.inversion.subjects import Invertible, PseudoBatch, labels_of


@dataclass(frozen=True)
class PixelWeights:
    """Weights of the priors beside the cross entropy."""

    tv: float = 1e-4
    bn: float = 1e-2
    l2: float = 1e-5


@dataclass(frozen=True)
class PixelForm:
    """Side of the images, and the mean and std of the scale in which their pixels move."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]


def total_variation(images: Tensor) -> Tensor:
    """Sum of the unsquared norms of the differences to the right, lower, and both diagonal neighbours, (B, C, H, W)."""
    right = images[..., :-1] - images[..., 1:]
    down = images[..., :-1, :] - images[..., 1:, :]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    return right.norm() + down.norm() + falling.norm() + rising.norm()


def jitter(images: Tensor, reach: int = 2) -> Tensor:
    """Roll the whole batch by up to `reach` pixels in each direction."""
    rows, columns = torch.randint(-reach, reach + 1, (2,)).tolist()
    return images.roll((rows, columns), dims=(-2, -1))


def jitter_and_flip(images: Tensor) -> Tensor:
    """Roll the whole batch by up to an eighth of its side in each direction, and mirror it at random."""
    rolled = jitter(images, images.shape[-1] // 8)
    return rolled.flip(-1) if bool(torch.rand(()) < 0.5) else rolled


def deep_inversion(
    loss_of: Callable[[Tensor], Tensor], count: int, form: PixelForm, steps: int, lr: float, device: torch.device
) -> tuple[Tensor, float]:
    """Images in [0, 1] (count, C, S, S) of the step with the lowest loss, and that loss (Yin et al., CVPR 2020).

    Adam(.5, .99) on pixels that start from N(0, 1) in the normalisation of `form` and are clipped after each step;
    `loss_of` takes images in [0, 1] and sees them jittered and mirrored.
    """
    mean, std = (torch.tensor(value, device=device).view(-1, 1, 1) for value in (form.mean, form.std))
    values = torch.randn(count, len(form.mean), form.size, form.size, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([values], lr, betas=(0.5, 0.99))
    best, kept = torch.full((), float("inf"), device=device), values.detach().clone()
    for _ in range(steps):
        loss = loss_of(jitter_and_flip(values) * std + mean)
        better = loss.detach() < best
        kept, best = torch.where(better, values.detach(), kept), torch.where(better, loss.detach(), best)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            values.clamp_(-mean / std, (1 - mean) / std)
    return (kept * std + mean).clamp(0, 1), float(best)


class PixelImages:
    """Learnable images of every class of a pool, improved a step at a time by all teachers that know the class.

    `values` (classes, per_class, C, S, S) are in the normalisation (mean, std) and start from N(0, 1); after each step
    they are clipped to what an image can be, unless `clamp` is off. Adam with its usual betas. together: teachers of one
    kind that are asked in one mapped computation.
    """

    def __init__(
        self,
        num_classes: int,
        per_class: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        lr: float,
        weights: PixelWeights,
        clamp: bool,
        device: torch.device,
        together: int = 1,
    ) -> None:
        shape = (num_classes, per_class, len(mean), image_size, image_size)
        self.values = torch.randn(shape, device=device, requires_grad=True)
        self.mean, self.std = (self.values.new_tensor(value).view(-1, 1, 1) for value in (mean, std))
        self.weights, self.clamp, self.together = weights, clamp, together
        self.optimizer = torch.optim.Adam([self.values], lr=lr)

    @property
    def unit(self) -> Tensor:
        """The images in [0, 1] (with `clamp`), (classes, per_class, C, S, S); gradients reach `values`."""
        return self.values * self.std + self.mean

    @torch.no_grad()
    def begin_with(self, images: Tensor) -> None:
        """Take images (classes * per_class, C, S, S) in [0, 1] instead of noise."""
        self.values.copy_(((images - self.mean) / self.std).view_as(self.values))

    def loss(self, teacher: Invertible, x: Tensor, labels: Tensor) -> Tensor:
        """CE + bn * BN + tv * TV + l2 * ||x|| on x, the jittered values (B, C, S, S) of one teacher's classes."""
        with record_bn_distances(teacher.network) as distances:
            logits = teacher(x * self.std + self.mean)
        loss = F.cross_entropy(logits, labels) + self.weights.tv * total_variation(x) + self.weights.l2 * x.norm()
        return loss + self.weights.bn * torch.stack(distances).sum() if distances else loss

    def step(self, teachers: Sequence[Invertible], extra: Tensor | None = None) -> float:
        """One Adam step on the sum of the teachers' losses, each weighted once, and of `extra`, a loss of the images.

        Each teacher sees the images of its own classes in its own order. Returns the teachers' mean loss.
        """
        gradient, total = torch.zeros_like(self.values), torch.zeros((), device=self.values.device)
        for places in alike(teachers, self.together):
            some = [teachers[place] for place in places]
            labels = labels_of(some[0], self.values.shape[1], self.values.device)
            classes = torch.tensor([teacher.class_ids for teacher in some], device=self.values.device)  # (K, way)
            values = self.values.detach()[classes].requires_grad_()  # (K, way, per_class, C, S, S)
            x = [jitter(own.flatten(0, 1)) for own in values]
            loss = self._sum_of_losses(some, x, labels)
            (own_gradient,) = torch.autograd.grad(loss, values)
            gradient.index_add_(0, classes.flatten(), own_gradient.flatten(0, 1))
            total += loss.detach()
        if extra is not None:
            gradient += torch.autograd.grad(extra, self.values)[0]
        self.values.grad = gradient
        self.optimizer.step()
        if self.clamp:
            with torch.no_grad():
                self.values.clamp_(-self.mean / self.std, (1 - self.mean) / self.std)
        return float(total) / len(teachers)

    def _sum_of_losses(self, teachers: Sequence[Invertible], images: Sequence[Tensor], labels: Tensor) -> Tensor:
        if len(teachers) == 1:
            return self.loss(teachers[0], images[0], labels)
        return Stack(teachers).losses(lambda teacher, x: self.loss(teacher, x, labels), torch.stack(list(images))).sum()

    def batch_of(self, teacher: Invertible) -> PseudoBatch:
        """The present images of a teacher's classes."""
        images = self.unit.detach()[list(teacher.class_ids)].clamp(0, 1)  # (way, per_class, C, S, S)
        labels = labels_of(teacher, images.shape[1], images.device)
        return PseudoBatch(images.flatten(0, 1), labels, teacher.class_ids)

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values.detach().clone(), "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values.copy_(state["values"])
        self.optimizer.load_state_dict(state["optimizer"])


def invert_alone(
    teacher: Invertible,
    images_per_class: int,
    image_size: int,
    form: tuple[Sequence[float], Sequence[float]],
    steps: int,
    lr: float,
    weights: PixelWeights,
    device: torch.device,
    start: Tensor | None = None,
) -> PseudoBatch:
    """Pseudo-images of one teacher by itself in `steps` steps; `form` is the mean and std of the pixels' scale.

    They begin as noise, or as the images `start` (way * images_per_class, C, S, S) in [0, 1].
    """
    images = PixelImages(teacher.way, images_per_class, image_size, *form, lr, weights, clamp=True, device=device)
    if start is not None:
        images.begin_with(start)
    alone = _Alone(teacher)
    for _ in range(steps):
        images.step([alone])
    batch = images.batch_of(alone)
    return PseudoBatch(batch.images, batch.labels, teacher.class_ids)


class _Alone:
    """A teacher whose classes are all there are: numbered from 0."""

    def __init__(self, teacher: Invertible) -> None:
        self.teacher, self.network, self.way = teacher, teacher.network, teacher.way
        self.image_size, self.kind = teacher.image_size, teacher.kind
        self.class_ids = tuple(range(teacher.way))

    def __call__(self, images: Tensor) -> Tensor:
        return self.teacher(images)
