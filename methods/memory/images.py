"""The pool of pseudo-images that data-free distillation draws from, as bytes."""

from typing import Any

import torch
from torch import Tensor

from utils.images import resize, take, to_uint8


class ImagePool:
    """Pseudo-images without classes, uint8 (C, S, S): it grows with every batch, and all of it is drawn from alike.

    The first `near` images lie on the device, those after them in the host's memory.
    """

    def __init__(self, image_size: int, device: torch.device, near: int, channels: int = 3) -> None:
        self.near = near
        shape = (0, channels, image_size, image_size)
        places = (device, torch.device("cpu"))
        self.stores = [torch.zeros(shape, dtype=torch.uint8, device=place) for place in places]
        self.counts = [0, 0]  # images in each store, whose length runs ahead

    def __len__(self) -> int:
        return sum(self.counts)

    @torch.no_grad()
    def add(self, images: Tensor) -> None:
        """Keep images (B, C, h, w) in [0, 1], resized to the pool's size."""
        new = to_uint8(resize(images, self.stores[0].shape[-1]))
        room = max(0, self.near - self.counts[0])
        for place, part in enumerate((new[:room], new[room:])):
            store, count = self.stores[place], self.counts[place]
            if count + len(part) > len(store):
                store = torch.cat([store[:count], store.new_zeros(count + len(part), *store.shape[1:])])  # twice as long
            store[count : count + len(part)] = part.to(store.device)
            self.stores[place], self.counts[place] = store, count + len(part)

    def sample(self, count: int) -> Tensor:
        """Images drawn with replacement, uint8 (count, C, S, S) on the device."""
        chosen = torch.randint(len(self), (count,))
        (near, far), first = self.stores, self.counts[0]
        drawn = take(near, chosen.clamp(max=first - 1).to(near.device))
        beyond = chosen >= first
        if bool(beyond.any()):
            drawn[beyond.to(near.device)] = take(far, chosen[beyond] - first).to(near.device)
        return drawn

    def newest(self, count: int) -> Tensor:
        """The last images that came, uint8, at most `count`."""
        near, far = (store[:kept] for store, kept in zip(self.stores, self.counts, strict=True))
        return torch.cat([near[-count:].cpu(), far[-count:]])[-count:]

    def state_dict(self) -> dict[str, Any]:
        return {"stores": [store[:count].clone() for store, count in zip(self.stores, self.counts, strict=True)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stores = [new.to(old.device) for new, old in zip(state["stores"], self.stores, strict=True)]
        self.counts = [len(store) for store in self.stores]
