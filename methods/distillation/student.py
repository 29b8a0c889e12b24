"""The student of data-free distillation: a network that is trained on pseudo-images to answer as its teachers do."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from methods.distillation.muon import Muon
from methods.metalearners.learner import Learner
from models import create_model
from models.norm import folded, shared_norms
from utils import distributed
from utils.errors import UserError
from utils.progress import Progress

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (B, D), targets (B, D) -> scalar


class Student:
    """A network in training with ordinary batch normalisation.

    `prepare` brings images to the network's size and normalisation. When the rate moves is the caller's business. Several
    processes share each batch.
    """

    def __init__(
        self, network: nn.Module, prepare: Callable[[Tensor], Tensor], optimizer: Optimizer, schedule: LRScheduler
    ) -> None:
        self.network, self.prepare = shared_norms(network), prepare
        self.optimizer, self.schedule = optimizer, schedule

    def update(self, images: Tensor, targets: Tensor, loss_of: Loss) -> tuple[Tensor, Tensor]:
        """One step on images (B, C, S, S) and their targets (B, ...); returns the loss and the outputs before it."""
        self.network.train()
        outputs = distributed.by_shares(lambda own: self.network(self.prepare(own)), images)
        loss = loss_of(outputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(self.network.parameters())
        self.optimizer.step()
        return loss.detach(), outputs.detach()

    def logits(self, images: Tensor) -> Tensor:
        """Outputs in evaluation mode for images (B, C, S, S); gradients reach the images, not the weights."""
        self.network.eval()
        frozen = {name: value.detach() for name, value in self.network.named_parameters()}
        return functional_call(self.network, frozen, (self.prepare(images),))

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `UserError` where the rate was to fall over another number of steps."""
        for span in ("T_max", "total_steps"):
            if span in state["schedule"] and state["schedule"][span] != getattr(self.schedule, span):
                raise UserError("--epochs cannot change: the rate rises or falls over all of them; start a new run")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


class TargetScale:
    """Mean (D,) and spread of targets: the unit in which a student regresses them.

    So it begins at the mean answer, and how far a step goes does not depend on how many outputs share a length.
    """

    def __init__(self, outputs: int, device: torch.device) -> None:
        self.mean, self.spread = torch.zeros(outputs, device=device), torch.ones((), device=device)

    def fit(self, targets: Tensor) -> None:
        """To targets (M, D), wherever they lie: their mean, and the root of their variance over all outputs together."""
        parts = targets.split(10_000)  # so that no second copy of them all is made
        mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(targets)
        variance = torch.stack([(part.double() - mean).square().mean(1).sum() for part in parts]).sum() / len(targets)
        self.mean, self.spread = (value.to(self.mean) for value in (mean, variance.sqrt().clamp(min=1e-6)))

    def __call__(self, targets: Tensor) -> Tensor:
        """Targets (B, D) in that unit."""
        return (targets.to(self.mean.dtype) - self.mean) / self.spread

    def undone(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters whose head answers in the targets' own unit, from those of a head that answers in this one."""
        weight, bias = params["head.weight"], params["head.bias"]
        return {**params, "head.weight": weight * self.spread, "head.bias": bias * self.spread + self.mean}

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "spread": self.spread}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean, self.spread = (state[name].to(self.mean.device) for name in ("mean", "spread"))


class LearnersStudent(Student):
    """The twin of a learner whose normalisation is fixed; `teach` hands what it has learnt to the learner.

    It regresses targets in the unit of `scale`. One-cycle rate (Smith and Topin, 2019) over `updates` updates, the peak `lr` at
    a tenth of them; the momentum falls while the rate rises, where the optimizer has `betas`.
    """

    def __init__(self, learner: Learner, lr: float, updates: int, make_optimizer: type[Muon | Adam] = Muon) -> None:
        spec, device = learner.spec, learner.device
        self.learner, self.scale = learner, TargetScale(spec.way, device)
        twin = create_model(spec.arch, spec.way, spec.image_size, norm="running", global_pool=spec.global_pool)
        network = twin.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.begun_by_another = False  # whether an optimizer of another kind took the steps up to here
        optimizer = make_optimizer(network.parameters(), lr)
        total = max(2, updates) + (updates == 10)  # the rise over one update of ten is divided by its length less one
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, lr, total, pct_start=0.1, cycle_momentum="betas" in optimizer.defaults
        )
        super().__init__(network, learner.prepare, optimizer, schedule)

    def check_goes_on(self) -> None:
        """Raise `UserError` in a run that another optimizer began."""
        if self.begun_by_another:
            raise UserError("an earlier version of the program, with another optimizer, made this run; start a new one")

    def epoch(self, images: Tensor, targets: Tensor, loss_of: Loss, batch_size: int) -> float:
        """One pass over uint8 images (M, C, S, S) with their targets (M, D), in random order; returns the mean loss."""
        device = self.learner.device
        total = torch.zeros((), device=device)
        batches = torch.randperm(len(images))[: len(images) // batch_size * batch_size].view(-1, batch_size)
        for chosen in Progress(batches, desc="distillation", unit="batch", leave=False):
            some, wanted = (whole[chosen.to(whole.device)].to(device) for whole in (images, targets))
            total += self.update(some, self.scale(wanted), loss_of)[0]
            self.schedule.step()
        return float(total) / len(batches)

    @torch.no_grad()
    def teach(self) -> None:
        """Give the learner the parameters with the running statistics and the targets' scale folded in."""
        for name, value in self.scale.undone(folded(self.network)).items():
            self.learner.params[name].copy_(value)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A run that another optimizer began can be scored, and does not go on (`check_goes_on`)."""
        groups = state["optimizer"]["param_groups"], self.optimizer.param_groups
        self.begun_by_another = len({"betas" in group for (group, *_) in groups}) > 1  # Adam's, and not Muon's
        if self.begun_by_another:
            self.network.load_state_dict(state["network"])
        else:
            super().load_state_dict(state)
        self.teach()
