"""Few-shot episodes, whole batches at a time."""

from dataclasses import dataclass

import torch

from datasets.split import ImageSplit
from utils import seed
from utils.errors import UserError


@dataclass(frozen=True)
class Episodes:
    """A batch of E episodes: N-way, K shots and Q queries of each class.

    support (E, N*K, C, H, W), support_labels (E, N*K), query (E, N*Q, C, H, W), query_labels (E, N*Q); images are
    float in the learner's normalisation, labels int64 in 0..N-1, grouped by class.
    """

    support: torch.Tensor
    support_labels: torch.Tensor
    query: torch.Tensor
    query_labels: torch.Tensor
    way: int

    def __len__(self) -> int:
        return len(self.support)

    def __getitem__(self, index: slice) -> "Episodes":
        return Episodes(self.support[index], self.support_labels[index], self.query[index], self.query_labels[index], self.way)


def make_episodes(support: torch.Tensor, query: torch.Tensor, way: int) -> Episodes:
    """Episodes from support (E, N*K, C, H, W) and query (E, N*Q, C, H, W) images that are grouped by class."""
    labels = [_labels(part, way) for part in (support, query)]
    return Episodes(support, labels[0], query, labels[1], way)


def _labels(images: torch.Tensor, way: int) -> torch.Tensor:
    per_class, over = divmod(images.shape[1], way)
    if over:
        raise ValueError(f"{images.shape[1]} images an episode are none of {way} classes with as many each")
    return torch.arange(way, device=images.device).repeat_interleave(per_class).expand(len(images), -1)


@dataclass(frozen=True)
class EpisodeShape:
    """way, shot and query of an episode."""

    way: int
    shot: int
    query: int


def draw_slots(counts: torch.Tensor, shape: EpisodeShape, episodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw episodes from classes that hold `counts` (classes,) images each, without replacement, all at once.

    Returns classes (E, N) and, for each of them, the places of its images (E, N, K + Q) in 0..count-1. Classes with
    fewer than K + Q images are left out.
    """
    per_class, most = shape.shot + shape.query, int(counts.max())
    classes = (counts >= per_class).nonzero().flatten()
    chosen = draw_different(classes, shape.way, episodes)
    return chosen, draw_places(counts[chosen], per_class, most)


def draw_different(classes: torch.Tensor, way: int, episodes: int) -> torch.Tensor:
    """`way` different ones of the classes (C,) for each episode: (E, N). Raises `UserError` where there are fewer."""
    if len(classes) < way:
        raise UserError(f"{len(classes)} classes have images enough, an episode needs {way}: lower the way, or wait for more")
    return classes[torch.rand(episodes, len(classes)).argsort(1)[:, :way]]


def draw_places(counts: torch.Tensor, number: int, most: int) -> torch.Tensor:
    """For each entry of `counts` (E, N), none above `most`, `number` different places below it: (E, N, number)."""
    order = torch.rand(*counts.shape, most)
    order.masked_fill_(torch.arange(most) >= counts[..., None], 2.0)
    return order.argsort(2)[..., :number]


class EpisodeSampler:
    """Draws fixed or fresh episodes of a split as indices into its images.

    Raises `UserError` when built, with the numbers, if the split has too few classes or images for the shape.
    """

    def __init__(self, split: ImageSplit, shape: EpisodeShape, name: str = "the split") -> None:
        self.shape = shape
        counts = torch.bincount(split.labels.cpu(), minlength=len(split.class_names))
        if len(counts) < shape.way:
            raise UserError(f"{name} has {len(counts)} classes, an episode needs {shape.way}: lower the way or add classes")
        need, smallest = shape.shot + shape.query, int(counts.argmin())
        if counts[smallest] < need:
            raise UserError(
                f"class {split.class_names[smallest]!r} of {name} has {counts[smallest]} images, an episode needs "
                f"{shape.shot} shots + {shape.query} queries = {need}: lower shot or query, or add images"
            )
        order = split.labels.cpu().argsort(stable=True)
        self.by_class = order.split(counts.tolist())

    def indices(self, episodes: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `episodes` episodes: support indices (E, N*K) and query indices (E, N*Q), grouped by class."""
        way, shot, query = self.shape.way, self.shape.shot, self.shape.query
        support, queries = [], []
        for _ in range(episodes):
            classes = torch.randperm(len(self.by_class), generator=generator)[:way].tolist()
            rows = [self._draw(self.by_class[label], shot + query, generator) for label in classes]
            drawn = torch.stack(rows)  # (N, K + Q)
            support.append(drawn[:, :shot].flatten())
            queries.append(drawn[:, shot:].flatten())
        return torch.stack(support), torch.stack(queries)

    @staticmethod
    def _draw(members: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
        return members[torch.randperm(len(members), generator=generator)[:count]]


def fixed_episodes(split: ImageSplit, shape: EpisodeShape, episodes: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The evaluation episodes of a split: the same for every method, run and machine. Indices as in `EpisodeSampler`."""
    return EpisodeSampler(split, shape, name).indices(episodes, seed.generator(0, "episodes", name))
