"""The student of data-free distillation: a network that is trained on pseudo-images to answer as its teachers do."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from methods.metalearners.learner import Learner
from models import create_model
from models.norm import folded

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (B, D), targets (B, D) -> scalar


class Student:
    """A learner in training with ordinary batch normalisation; `teach` hands what it has learnt to the learner.

    Adam with a one-cycle rate (Smith and Topin, 2019) over `updates` updates, the peak `lr` at a tenth of them.
    """

    def __init__(self, learner: Learner, lr: float, updates: int) -> None:
        spec, device = learner.spec, next(iter(learner.params.values())).device
        self.learner = learner
        network = create_model(spec.arch, spec.way, spec.image_size, norm="running", global_pool=spec.global_pool)
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, max(2, updates), pct_start=0.1)

    def epoch(self, images: Tensor, targets: Tensor, loss_of: Loss, batch_size: int) -> float:
        """One pass over uint8 images (M, C, S, S) with their targets (M, D), in random order; returns the mean loss."""
        self.network.train()
        total = torch.zeros((), device=targets.device)
        batches = torch.randperm(len(images))[: len(images) // batch_size * batch_size].view(-1, batch_size)
        for chosen in tqdm(batches, desc="distillation", unit="batch", leave=False):
            some = chosen.to(images.device)
            loss = loss_of(self.network(self.learner.prepare(images[some])), targets[some].float())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.detach()
        return float(total) / len(batches)

    @torch.no_grad()
    def teach(self) -> None:
        """Give the learner, whose normalisation is fixed, the parameters with the running statistics folded in."""
        for name, value in folded(self.network).items():
            self.learner.params[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        parts = (self.network, self.optimizer, self.schedule)
        return {name: part.state_dict() for name, part in zip(("network", "optimizer", "schedule"), parts, strict=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.teach()
