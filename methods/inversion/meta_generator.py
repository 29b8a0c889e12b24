"""A generator that is meta-learned over teachers, so that a few steps suffice for each."""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from methods.inversion.generator import (
    InversionWeights,
    Invertible,
    LearnerLogits,
    PseudoBatch,
    descend,
    inversion_loss,
    labels_of,
)
from models.generator import Generator
from utils.images import Augmentation


class MetaGenerator:
    """Shared initialisation of a generator; each call adapts a copy to each teacher, then moves the initialisation.

    The outer gradient is first order: the sum over teachers of the inner gradients (of the last step, or of all steps),
    given to one persistent Adam(.5, .999).
    """

    def __init__(
        self,
        generator: Generator,
        weights: InversionWeights,
        augment: Augmentation,
        steps: int = 5,
        lr: float = 1e-3,
        lr_latent: float = 1e-3,
        lr_outer: float = 1e-3,
        gradient_of: str = "last",
    ) -> None:
        self.generator = generator
        self.weights = weights
        self.augment = augment
        self.steps = steps
        self.lr = lr
        self.lr_latent = lr_latent
        self.gradient_of = gradient_of
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=lr_outer, betas=(0.5, 0.999))

    def invert(
        self, teachers: Sequence[Invertible], images_per_class: int, learner: LearnerLogits | None = None
    ) -> tuple[list[PseudoBatch], float]:
        """Pseudo-images of each teacher, and the mean of their final losses; the generator learns from all of them."""
        batches, losses = [], []
        total = [torch.zeros_like(parameter) for parameter in self.generator.parameters()]
        device = total[0].device
        for teacher in teachers:
            labels = labels_of(teacher, images_per_class, device)
            descent = descend(
                copy.deepcopy(self.generator),
                lambda images, teacher=teacher, labels=labels: inversion_loss(  # type: ignore[misc]
                    teacher, images, labels, self.weights, self.augment, learner
                ),
                len(labels),
                self.steps,
                self.lr,
                self.lr_latent,
                self.gradient_of,
            )
            batches.append(PseudoBatch(descent.images, labels, teacher.class_ids))
            losses.append(descent.loss)
            for sum_, gradient in zip(total, descent.gradient, strict=True):
                sum_ += gradient
        for parameter, gradient in zip(self.generator.parameters(), total, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        return batches, float(torch.stack(losses).mean())

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
