"""Few-shot accuracy of a learner on fixed episodes of real images."""

import hashlib
from functools import cached_property
from pathlib import Path

import torch

from datasets.episodes import EpisodeShape, fixed_episodes, make_episodes
from datasets.registry import DatasetSpec
from datasets.split import ImageSplit, load_split
from methods.metalearners.base import Metalearner
from methods.metalearners.learner import Learner
from utils import distributed
from utils.images import take
from utils.metrics import Score

Indices = tuple[torch.Tensor, torch.Tensor]  # support (E, N*K) and query (E, N*Q), into a split's images


class Exam:
    """The fixed episodes of one split of one image set: the same for every method, run and machine."""

    def __init__(
        self, spec: DatasetSpec, split: str, data_root: Path, image_size: int, shape: EpisodeShape, episodes: int
    ) -> None:
        self.spec, self.split_name, self.data_root = spec, split, data_root
        self.image_size, self.shape, self.count = image_size, shape, episodes

    @cached_property
    def split(self) -> ImageSplit:
        return load_split(self.spec, self.split_name, self.data_root, self.image_size)

    @cached_property
    def indices(self) -> Indices:
        return fixed_episodes(self.split, self.shape, self.count, f"{self.spec.name} {self.split_name}")

    @cached_property
    def digest(self) -> str:
        """What identifies the exam: its images and its episodes."""
        digest = hashlib.sha256(repr(self.shape).encode())
        for part in (self.split.images, *self.indices):
            digest.update(part.numpy().tobytes())
        return digest.hexdigest()


@torch.no_grad()
def examine(learner: Learner, metalearner: Metalearner, exam: Exam, steps: int) -> Score:
    """Accuracy of the learner on each episode of `exam` after `steps` inner steps.

    Batch statistics see the whole query set (transductive, as in the papers) unless the metalearner is inductive.
    """
    metalearner = metalearner.reading(learner.readout)
    params, device = learner.frozen, learner.device
    images = exam.split.images.to(device)
    support, query = exam.indices
    size = 1 if metalearner.execution == "loop" else 50
    accuracies: list[torch.Tensor] = []
    support, query = (indices[distributed.share()].to(device) for indices in (support, query))
    for some_support, some_query in zip(support.split(size), query.split(size), strict=True):
        drawn_support, drawn_query = (learner.prepare(take(images, some)) for some in (some_support, some_query))
        episodes = make_episodes(drawn_support, drawn_query, exam.shape.way)
        accuracies += metalearner.in_chunks(
            episodes, lambda chunk: metalearner.outer_loss(params, chunk, steps, create_graph=False)[1]
        )
    return Score(distributed.gathered(torch.cat(accuracies).tolist() if accuracies else []))
