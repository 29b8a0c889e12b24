"""The classes and images a teacher is trained on."""

from collections.abc import Sequence

import torch

from datasets.split import ImageSplit
from utils import seed
from utils.images import take

TRAINING_SHARE = 0.8  # of a class's images; the others measure the teacher


def draw_classes(num_classes: int, way: int, teacher_id: int, seed_value: int) -> list[int]:
    """A random `way`-subset of the classes for one teacher; it depends on the seed and the teacher's number only."""
    order = torch.randperm(num_classes, generator=seed.generator(seed_value, "classes", teacher_id))
    return order[:way].tolist()


def disjoint_classes(num_classes: int, way: int) -> list[list[int]]:
    """Consecutive groups of `way` classes that cover all; a remainder of one class joins the group before it."""
    starts = list(range(0, num_classes, way))
    if num_classes % way == 1 and len(starts) > 1:
        starts.pop()
    ends = [*starts[1:], num_classes]
    return [list(range(start, end)) for start, end in zip(starts, ends, strict=True)]


def train_and_held_out(
    split: ImageSplit, class_ids: Sequence[int], seed_value: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Images uint8 (M, C, S, S) and labels 0..way-1 (M,) for training, and the same for measuring.

    Each class's images, sorted by file name, are shuffled by the seed and the class's name and cut at `TRAINING_SHARE`, so the
    same image of a class is held out from every teacher of a seed.
    """
    train, held_out = [], []
    for class_id in class_ids:
        members = (split.labels == class_id).nonzero().flatten().cpu()
        stream = seed.generator(seed_value, "held out", split.class_names[class_id])
        members = members[torch.randperm(len(members), generator=stream)]
        cut = max(1, int(TRAINING_SHARE * len(members)))
        train.append(members[:cut])
        held_out.append(members[cut:])

    def gather(parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.cat([torch.full((len(part),), label) for label, part in enumerate(parts)])
        return take(split.images, torch.cat(parts).to(split.images.device)), labels.to(split.images.device)

    return gather(train), gather(held_out)
