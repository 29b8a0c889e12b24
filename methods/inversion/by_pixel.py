"""Inversion of pixels: the images themselves are the parameters (DeepInversion; Yin et al., CVPR 2020)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from methods.inversion.pseudo_batch import Invertible, PseudoBatch, labels_of
from methods.inversion.stacked import Stack, alike
from methods.inversion.terms import Weights, inversion_loss
from utils import distributed
from utils.images import ImageForm

PRIORS = {"ce": 1.0, "tv": 1e-4, "bn": 1e-2, "l2": 1e-5}  # PURER's weights
Loss = Callable[[Any, Tensor, Tensor], Tensor]  # (teacher, pixels in the form's scale, labels) -> what a step descends on


def jitter(images: Tensor, reach: int = 2) -> Tensor:
    """Roll the whole batch by up to `reach` pixels in each direction."""
    rows, columns = torch.randint(-reach, reach + 1, (2,)).tolist()
    return images.roll((rows, columns), dims=(-2, -1))


def jitter_and_flip(images: Tensor) -> Tensor:
    """Roll the whole batch by up to an eighth of its side in each direction, and mirror it at random."""
    rolled = jitter(images, images.shape[-1] // 8)
    return rolled.flip(-1) if bool(torch.rand(()) < 0.5) else rolled


def deep_inversion(
    loss_of: Callable[[Tensor], Tensor], count: int, form: ImageForm, steps: int, lr: float, device: torch.device
) -> tuple[Tensor, float]:
    """Images in [0, 1] (count, C, S, S) of the step with the lowest loss, and that loss (Yin et al., CVPR 2020).

    Adam(.5, .99) on pixels that start from N(0, 1) in the normalisation of `form` and are clipped after each step;
    `loss_of` takes images in [0, 1] and sees them jittered and mirrored.
    """
    values = form.noise(count, device).requires_grad_()
    optimizer = torch.optim.Adam([values], lr, betas=(0.5, 0.99))
    best, kept = torch.full((), float("inf"), device=device), values.detach().clone()
    for _ in range(steps):
        loss = loss_of(form.to_images(jitter_and_flip(values)))
        better = loss.detach() < best
        kept, best = torch.where(better, values.detach(), kept), torch.where(better, loss.detach(), best)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        form.clip_(values)
    return form.to_images(kept).clamp(0, 1), float(best)


def invert_pixels(teacher: Invertible, start: Tensor, form: ImageForm, weights: Weights, steps: int, lr: float) -> PseudoBatch:
    """Pseudo-images of one teacher after `steps` Adam steps on pixels, jittered in each and clipped after it.

    `start` (way * K, C, S, S) is in the scale of `form`, grouped by class, and stays as it is.
    """
    values = start.detach().clone().requires_grad_()
    labels = labels_of(teacher, len(values) // teacher.way, values.device)
    optimizer = torch.optim.Adam([values], lr=lr)
    for _ in range(steps):
        x = jitter(values)
        loss = inversion_loss(weights, teacher, form.to_images(x), labels, pixels=x)
        (values.grad,) = torch.autograd.grad(loss, values)
        optimizer.step()
        form.clip_(values)
    return PseudoBatch(form.to_images(values.detach()).clamp(0, 1), labels, teacher.class_ids)


class PixelImages:
    """Learnable images of every class of a pool, improved a step at a time by all teachers that know the class.

    `values` (classes, per_class, C, S, S) are in the scale of `form` and start from N(0, 1); after each step they are
    clipped to what an image can be, unless `clamp` is off. Adam with its usual betas.
    """

    def __init__(
        self, num_classes: int, per_class: int, form: ImageForm, lr: float, device: torch.device, clamp: bool = True
    ) -> None:
        self.form, self.clamp = form, clamp
        noise = form.noise(num_classes * per_class, device)
        self.values = noise.unflatten(0, (num_classes, per_class)).requires_grad_()
        self.optimizer = torch.optim.Adam([self.values], lr=lr)

    @property
    def unit(self) -> Tensor:
        """The images in [0, 1] (with `clamp`), (classes, per_class, C, S, S); gradients reach `values`."""
        return self.form.to_images(self.values)

    def gradient(self, teachers: Sequence[Invertible], loss: Loss, together: int = 1) -> tuple[Tensor, float]:
        """Gradient of the sum of the teachers' losses, each weighted once, and their mean.

        Each teacher sees the images of its own classes in its own order, jittered. together: teachers of one kind that are
        asked in one mapped computation.
        """
        gradient, total = torch.zeros_like(self.values), torch.zeros((), device=self.values.device)
        for turn, places in enumerate(alike(teachers, together)):
            some = [teachers[place] for place in places]
            labels = labels_of(some[0], self.values.shape[1], self.values.device)
            classes = torch.tensor([teacher.class_ids for teacher in some], device=self.values.device)  # (K, way)
            values = self.values.detach()[classes].requires_grad_()  # (K, way, per_class, C, S, S)
            x = [jitter(own.flatten(0, 1)) for own in values]
            if turn % distributed.size() != distributed.rank():
                continue  # another process asks them
            value = _sum_of_losses(some, x, labels, loss)
            (own_gradient,) = torch.autograd.grad(value, values)
            gradient.index_add_(0, classes.flatten(), own_gradient.flatten(0, 1))
            total += value.detach()
        distributed.all_sum([gradient, total])
        return gradient, float(total) / len(teachers)

    def step(self, gradient: Tensor) -> None:
        """One Adam step along a gradient (classes, per_class, C, S, S)."""
        self.values.grad = gradient
        self.optimizer.step()
        if self.clamp:
            self.form.clip_(self.values)

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


def _sum_of_losses(teachers: Sequence[Invertible], pixels: Sequence[Tensor], labels: Tensor, loss: Loss) -> Tensor:
    if len(teachers) == 1:
        return loss(teachers[0], pixels[0], labels)
    return Stack(teachers).losses(lambda teacher, x: loss(teacher, x, labels), torch.stack(list(pixels))).sum()
