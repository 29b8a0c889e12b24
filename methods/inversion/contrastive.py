"""Images that differ from each other and from all before them: contrastive inversion (CMI; Fang et al., IJCAI 2021)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.inversion.bn_statistics import record_instance_means
from methods.inversion.pseudo_batch import Invertible
from utils.errors import UserError
from utils.images import shift_and_flip

BANK_SIZE, NEGATIVES, HEAD_WIDTH = 40_960, 4_096, 256


def resized_crop(images: Tensor, least: float = 0.25) -> Tensor:
    """Cut `least` to all of each image's area, at a shape of 3:4 to 4:3 and a random place, stretch it to the whole, and
    mirror it at random, for each image of (B, C, H, W) by itself; differentiable."""
    batch = len(images)
    area = least + (1 - least) * torch.rand(batch, device=images.device)
    shape = torch.exp((2 * torch.rand(batch, device=images.device) - 1) * math.log(4 / 3))
    width, height = ((area * factor).sqrt().clamp(max=1) for factor in (shape, 1 / shape))  # of the image's own
    across, down = ((2 * torch.rand(batch, device=images.device) - 1) * (1 - side) for side in (width, height))
    width = torch.where(torch.rand(batch, device=images.device) < 0.5, -width, width)  # negative: mirrored
    zero = torch.zeros_like(area)
    places = torch.stack([torch.stack([width, zero, across], 1), torch.stack([zero, height, down], 1)], 1)  # (B, 2, 3)
    grid = F.affine_grid(places, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross entropy of telling each query's own key from all others, from unit vectors (M, D): (M,)."""
    labels = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(queries @ keys.T / temperature, labels, reduction="none")


class Contrast:
    """How alike a teacher finds a batch's images, and those of a bank of earlier ones, through a small head that learns it.

    Two views of each image, a shifted one and a stretched crop, are to be nearer to each other than to any other image's.
    An image is described by its channel means at every normalisation layer of the teacher; `UserError` where it has none.
    """

    def __init__(self, teacher: Invertible, image_size: int, lr: float, temperature: float, device: torch.device) -> None:
        self.teacher, self.temperature = teacher, temperature
        with torch.no_grad():
            width = self.describe(torch.zeros(1, 3, image_size, image_size, device=device)).shape[1]
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, HEAD_WIDTH)).to(device)
        self.optimizer = torch.optim.Adam(self.head.parameters(), lr)
        self.bank = torch.zeros(2, 0, width)  # crops and shifted views of earlier images, on the host

    def describe(self, images: Tensor) -> Tensor:
        """Channel means at all normalisation layers, (B, D)."""
        with record_instance_means(self.teacher.network) as means:
            self.teacher(images)
        if not means:
            raise UserError("the teacher has no batch normalisation, by which CMI describes images: --method fast or deepinv")
        return torch.cat(means, 1)

    def project(self, described: Tensor) -> Tensor:
        """Unit vectors (B, D) of described images (B, channels of all layers), between which cosines are taken."""
        return F.normalize(self.head(described))

    def loss(self, images: Tensor, shifted: Tensor) -> Tensor:
        """InfoNCE of crops (queries) against shifted views (keys, without gradient), for images (B, C, S, S) in [0, 1].

        `shifted` (B, D) describes the shifted views. The batch's mean, and where there is a bank, the mean over what was
        drawn of it beside. `learn` takes the head's step.
        """
        views = [self.describe(resized_crop(images)), shifted.detach()]
        count = min(NEGATIVES, self.bank.shape[1])
        drawn = self.bank[:, torch.randperm(self.bank.shape[1])[:count]].to(images.device)  # (2, N', D)
        queries, keys = (self.project(torch.cat([view, old])) for view, old in zip(views, drawn, strict=True))
        losses = info_nce(queries, keys.detach(), self.temperature)
        own, others = losses[: len(images)].mean(), losses[len(images) :]
        return own + others.mean() if count else own

    def learn(self) -> None:
        """A step of the head along the gradient that the last backward pass left."""
        if any(parameter.grad is not None for parameter in self.head.parameters()):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def remember(self, images: Tensor) -> None:
        """Put a batch into the bank; the oldest leave it when it is full."""
        views = torch.stack([self.describe(resized_crop(images)), self.describe(shift_and_flip(images))]).cpu()
        self.bank = torch.cat([self.bank, views], 1)[:, -BANK_SIZE:]

    def state_dict(self) -> dict[str, Any]:
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(), "bank": self.bank}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.bank = state["bank"]
