"""The pool of pseudo-images that data-free distillation draws from, as bytes."""

from typing import Any

import torch
from torch import Tensor

from utils.images import resize, take, to_uint8

NEAR_BYTES = 2 << 30  # of images on the device, at most
BLOCK_BYTES = 64 << 20  # of images that the host makes room for at once


class ImagePool:
    """Pseudo-images without classes, uint8 (3, S, S): it grows with every batch, and all of it is drawn from alike.

    The first `near` images, as far as `NEAR_BYTES` suffice, lie on the device, those after them in the host's memory, in
    blocks, so that growing copies nothing.
    """

    def __init__(self, image_size: int, device: torch.device, near: int) -> None:
        each = 3 * image_size**2
        self.most_near, self.block = max(1, min(near, NEAR_BYTES // each)), max(1, BLOCK_BYTES // each)
        self.near = torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8, device=device)
        self.far: list[Tensor] = []
        self.count_near, self.count_far = 0, 0  # images there are; the room for them runs ahead

    def __len__(self) -> int:
        return self.count_near + self.count_far

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """Keep images (B, C, h, w) in [0, 1], resized to the pool's size."""
        new = to_uint8(resize(images, self.near.shape[-1]))
        room = self.most_near - self.count_near
        self._add_near(new[:room])
        self._add_far(new[room:].cpu())

    def sample(self, count: int) -> Tensor:
        """Images drawn with replacement, uint8 (count, C, S, S) on the device."""
        chosen, first = torch.randint(len(self), (count,)), self.count_near
        drawn = take(self.near, chosen.clamp(max=first - 1).to(self.near.device))
        beyond = chosen >= first
        if bool(beyond.any()):
            places = (chosen[beyond] - first).tolist()
            far = torch.stack([self.far[place // self.block][place % self.block] for place in places])
            drawn[beyond.to(drawn.device)] = far.to(drawn.device)
        return drawn

    def newest(self, count: int) -> Tensor:
        """The last images that came, uint8, at most `count`."""
        places = range(max(0, self.count_far - count), self.count_far)
        far = [self.far[place // self.block][place % self.block][None] for place in places]
        return torch.cat([self.near[: self.count_near][-count:].cpu(), *far])[-count:]

    def state_dict(self) -> dict[str, Any]:
        return {"near": self.near[: self.count_near].clone(), "far": self.far, "count_far": self.count_far}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "stores" in state:  # earlier versions kept the host's images in one piece
            near, far = state["stores"]
            state = {"near": near, "far": [far] if len(far) else [], "count_far": len(far)}
        self.near, self.count_near = state["near"].to(self.near.device), len(state["near"])
        self.far, self.count_far = [], 0
        for block in state["far"]:
            self._add_far(block[: state["count_far"] - self.count_far].cpu())

    def _add_near(self, new: Tensor) -> None:
        end = self.count_near + len(new)
        if end > len(self.near):
            room = self.near.new_zeros(min(self.most_near, 2 * end), *self.near.shape[1:])
            room[: self.count_near] = self.near[: self.count_near]
            self.near = room
        self.near[self.count_near : end] = new.to(self.near.device)
        self.count_near = end

    def _add_far(self, new: Tensor) -> None:
        while len(new):
            place = self.count_far % self.block
            if place == 0:
                self.far.append(torch.zeros(self.block, *new.shape[1:], dtype=torch.uint8))
            part, new = new[: self.block - place], new[self.block - place :]
            self.far[-1][place : place + len(part)] = part
            self.count_far += len(part)
