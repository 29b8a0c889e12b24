"""Replay: meta-training on episodes of the memory bank, which mix the classes of all teachers met so far."""

import argparse

from datasets.episodes import Episodes, EpisodeShape
from methods.memory.bank import MemoryBank
from methods.metalearners.outer import OuterStep
from utils.errors import UserError
from utils.images import Augmentation
from utils.metrics import Patience


class Replay:
    """Outer steps on `batch` episodes of `shape`, their images changed by `augment`, where that is given.

    patience: updates without a better accuracy after which `until_no_better` ends.
    """

    def __init__(
        self,
        outer: OuterStep,
        memory: MemoryBank,
        shape: EpisodeShape,
        batch: int,
        patience: int,
        augment: Augmentation | None = None,
    ) -> None:
        self.outer, self.memory, self.shape = outer, memory, shape
        self.batch, self.patience, self.augment = batch, patience, augment

    @property
    def ready(self) -> bool:
        """Whether memory can fill an episode."""
        return self.memory.ready_for(self.shape)

    def episodes(self, count: int) -> Episodes:
        """Episodes over all classes that have enough images."""
        return self.memory.sample_episodes(count, self.shape, self.outer.learner, self.augment)

    def once(self) -> tuple[float, float]:
        """One outer step; returns query loss and accuracy before it."""
        return self.outer.step(self.episodes(self.batch))

    @classmethod
    def of(
        cls, args: argparse.Namespace, outer: OuterStep, memory: MemoryBank, shape: EpisodeShape, augmentation: Augmentation
    ) -> "Replay":
        """As the flags --episode_batch, --patience and --augment say.

        Raises `UserError` where memory keeps too few images of a class for an episode, ever.
        """
        needed, most = shape.shot + shape.query, memory.images.shape[1]
        if needed > most:
            raise UserError(
                f"an episode needs {shape.shot} shots + {shape.query} queries = {needed} images of a class, and memory keeps "
                f"{most}: raise the pseudo-images of a class, or lower --num_qur_train"
            )
        return cls(outer, memory, shape, args.episode_batch, args.patience, augmentation if args.augment else None)

    def until_no_better(self) -> dict[str, float]:
        """Outer steps until the accuracy has not risen for `patience` of them; nothing while memory is not ready.

        Returns the last loss and accuracy, and the updates made.
        """
        if not self.ready:
            return {}
        patience, updates, exhausted = Patience(self.patience), 0, False
        while not exhausted:
            loss, accuracy = self.once()
            exhausted = patience.note(accuracy)
            updates += 1
        return {"loss": loss, "accuracy": accuracy, "replay_updates": float(updates)}
