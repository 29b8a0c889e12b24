"""Tasks as teachers gave them: support and query sets of a class kept apart, and new tasks over the classes of all."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datasets.episodes import Episodes, EpisodeShape, draw_different, draw_places, make_episodes
from methods.inversion.pseudo_batch import PseudoBatch
from methods.memory.bank import MemoryBank
from methods.metalearners.learner import Learner
from utils.images import Grid


class TaskMemory:
    """Rings of support sets (`shape.shot` images of a class) and of query sets (`shape.query`), `sets` of each class."""

    def __init__(self, num_classes: int, sets: int, shape: EpisodeShape, image_size: int, device: torch.device) -> None:
        self.shape = shape
        self.support = MemoryBank(num_classes, sets * shape.shot, image_size, device)
        self.query = MemoryBank(num_classes, sets * shape.query, image_size, device)

    def add(self, support: PseudoBatch, query: PseudoBatch) -> None:
        self.support.add(support)
        self.query.add(query)

    @property
    def classes(self) -> Tensor:
        """The classes that can fill their part of a task."""
        return ((self.support.counts >= self.shape.shot) & (self.query.counts >= self.shape.query)).nonzero().flatten()

    @property
    def ready(self) -> bool:
        return len(self.classes) >= self.shape.way

    def sample(self, tasks: int, learner: Learner) -> Episodes:
        """Tasks over all classes that are there, prepared for `learner`."""
        chosen = draw_different(self.classes, self.shape.way, tasks)  # (E, N)
        support = self._drawn(self.support, chosen, self.shape.shot)
        query = self._drawn(self.query, chosen, self.shape.query)
        return make_episodes(learner.prepare(support), learner.prepare(query), self.shape.way)

    @staticmethod
    def _drawn(bank: MemoryBank, chosen: Tensor, count: int) -> Tensor:
        """`count` different images of each class, (E, N * count, C, S, S)."""
        counts = bank.counts[chosen]  # (E, N)
        return bank.at(chosen, draw_places(counts, count, int(counts.max()))).flatten(1, 2)

    def picture(self, names: Sequence[str]) -> dict[str, Grid]:
        return self.query.picture(names)

    def state_dict(self) -> dict[str, Any]:
        return {"support": self.support.state_dict(), "query": self.query.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.support.load_state_dict(state["support"])
        self.query.load_state_dict(state["query"])
