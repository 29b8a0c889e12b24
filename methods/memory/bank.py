"""The memory bank: pseudo-images by class, as bytes and where the training runs, from which episodes are drawn."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.episodes import Episodes, EpisodeShape, draw_slots, make_episodes
from methods.inversion.pseudo_batch import PseudoBatch
from methods.metalearners.learner import Learner
from utils.images import Augmentation, Grid, channels_last, resize, rows_of, take, to_float, to_uint8

BATCHES_KEPT = 20  # of each class, as in the papers' code


class MemoryBank:
    """A ring of uint8 images (C, S, S) for each of the pool's classes; the oldest give way when it is full.

    capacity: images kept of a class.
    """

    def __init__(self, num_classes: int, capacity: int, image_size: int, device: torch.device, channels: int = 3) -> None:
        shape = (num_classes, capacity, image_size, image_size, channels)  # in channels-last layout
        self.images = torch.zeros(shape, dtype=torch.uint8, device=device).permute(0, 1, 4, 2, 3)
        self.added = torch.zeros(num_classes, dtype=torch.int64)  # ever, of each class; on the host, to decide without waiting

    @property
    def counts(self) -> Tensor:
        """Images kept of each class, (num_classes,), on the host."""
        return self.added.clamp(max=self.images.shape[1])

    @torch.no_grad()
    def add(self, *batches: PseudoBatch) -> None:
        """Keep teachers' images, resized to the bank's size; of each class as many as there are in a batch."""
        for batch in batches:
            self._add(batch)

    def _add(self, batch: PseudoBatch) -> None:
        capacity, size = self.images.shape[1], self.images.shape[-1]
        images, labels = to_uint8(resize(batch.images, size)), batch.labels.cpu()
        ids = torch.tensor(batch.class_ids)
        marks = F.one_hot(labels, len(ids))  # (M, way)
        counts = marks.sum(0)
        number = marks.cumsum(0).gather(1, labels[:, None])[:, 0] - 1  # of each image among those of its class
        kept = number >= counts[labels] - capacity
        classes = ids[labels]
        slots = (self.added[classes] + number) % capacity
        kept = kept.nonzero().flatten()
        where = (classes * capacity + slots)[kept].to(images.device)
        rows_of(self._flat).index_copy_(0, where, rows_of(take(channels_last(images), kept.to(images.device))))
        self.added[ids] += counts

    @property
    def _flat(self) -> Tensor:
        """All places, (num_classes * capacity, C, S, S)."""
        return self.images.flatten(0, 1)

    def ready_for(self, shape: EpisodeShape) -> bool:
        """Whether enough classes have enough images to draw an episode."""
        return int((self.counts >= shape.shot + shape.query).sum()) >= shape.way

    def sample_episodes(
        self, episodes: int, shape: EpisodeShape, learner: Learner, augment: Augmentation | None = None
    ) -> Episodes:
        """Draw episodes over all classes that have enough images, augmented and prepared for `learner`."""
        classes, slots = draw_slots(self.counts, shape, episodes)
        places = (classes[..., None] * self.images.shape[1] + slots).to(self.images.device)  # (E, N, K + Q)
        return pseudo_episodes(self._flat, places, shape, learner, augment)

    def at(self, classes: Tensor, slots: Tensor) -> Tensor:
        """The images at `slots` (..., n) of `classes` (...,): (..., n, C, S, S)."""
        return self.images[classes[..., None].to(self.images.device), slots.to(self.images.device)]

    def picture(self, names: Sequence[str], classes: int = 16, per_class: int = 8) -> dict[str, Grid]:
        """The newest images of some classes as `Method.pictures` wants them, one class a row; nothing while it is empty.

        names: of all classes, in their order.
        """
        columns = min(per_class, int(self.counts.max()))
        shown = (self.counts >= columns).nonzero().flatten()[:classes].tolist()
        rows = [names[class_id] for class_id in shown]
        return {"memory": Grid(self.examples(columns)[: classes * columns], columns, rows)} if columns else {}

    def examples(self, per_class: int) -> Tensor:
        """The newest images of every class that has as many, uint8 (classes * per_class, C, S, S)."""
        capacity = self.images.shape[1]
        full = (self.counts >= per_class).nonzero().flatten()
        slots = (self.added[full][:, None] - 1 - torch.arange(per_class)) % capacity  # (classes, per_class)
        return self.at(full, slots).flatten(0, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images[:, : int(self.counts.max())].clone(), "added": self.added.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What a ring of another capacity kept, as earlier versions had, its newest images."""
        images, added, capacity = state["images"], state["added"], self.images.shape[1]
        kept = images.shape[1]  # all places, or those that were ever filled
        if kept != capacity:
            count = added.clamp(max=min(kept, capacity))
            came = (added - count)[:, None] + torch.arange(int(count.max()))  # (classes, K), counted from the first ever
            images, added = images[torch.arange(len(images))[:, None], came % max(kept, 1)], count
        self.images[:, : images.shape[1]] = images.to(self.images.device)
        self.added.copy_(added)


def pseudo_episodes(
    images: Tensor, places: Tensor, shape: EpisodeShape, learner: Learner, augment: Augmentation | None = None
) -> Episodes:
    """Episodes of the images (M, C, S, S), uint8 or float in [0, 1], at `places` (E, N, K + Q), prepared for `learner`."""

    def prepared(some: Tensor) -> Tensor:
        drawn = take(images, some.flatten(1))  # (E, N * K, C, S, S), or N * Q
        if augment is not None:
            drawn = augment((to_float(drawn) if drawn.dtype == torch.uint8 else drawn).flatten(0, 1)).unflatten(
                0, drawn.shape[:2]
            )
        return learner.prepare(drawn)

    support, query = places.split([shape.shot, shape.query], dim=2)
    return make_episodes(prepared(support), prepared(query), shape.way)
