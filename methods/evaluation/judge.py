"""Do pseudo-images look like their classes? An independent network, trained on real images, is asked."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from datasets.registry import SPECS, DatasetSpec
from datasets.split import ImageSplit, csv_path, load_split
from methods.inversion.pseudo_batch import PseudoBatch
from methods.teachers.pool import TeacherPool
from methods.teachers.pretraining import Recipe, train_teacher
from models import create_model
from models.backbone import Backbone
from utils import seed
from utils.errors import UserError
from utils.images import Grid, channels_last, normalise, resize, to_uint8
from utils.names import shown
from utils.progress import Progress

JUDGE_SEED = 1  # the same judge for every run


def train_judge(split: ImageSplit, spec: DatasetSpec, device: torch.device, epochs: int = 8) -> Backbone:
    """A conv4 over all classes of the real split; no inversion ever sees it."""
    network = create_model("conv4", len(split.class_names), split.images.shape[-1]).to(device)
    images, labels = split.images.to(device), split.labels.to(device)
    order = torch.randperm(len(images), generator=seed.generator(JUDGE_SEED, "judge")).to(device)
    train, held_out = order[len(order) // 10 :], order[: len(order) // 10]
    stream = seed.generator(JUDGE_SEED, "judge", "batches")
    with Progress(total=epochs, desc="judge on real images", unit="epoch", leave=False) as progress:
        data, others = ((images[part], labels[part]) for part in (train, held_out))
        state, _ = train_teacher(network, "conv4", data, others, spec, Recipe(epochs=epochs), stream, progress)
    network.load_state_dict(state)
    return network.eval()


@torch.no_grad()
def recognised(judge: Backbone, batch: PseudoBatch, classes: Sequence[int], spec: DatasetSpec, size: int) -> Tensor:
    """Whether the judge names each image's class, choosing among the teacher's: (M,) of bool.

    `classes` are the judge's numbers of the teacher's classes, in the teacher's order.
    """
    logits = judge(channels_last(normalise(resize(batch.images, size), spec.mean, spec.std)))
    return logits[:, list(classes)].argmax(1) == batch.labels


def beside_real(
    batch: PseudoBatch, split: ImageSplit, classes: Sequence[int], per_class: int, draws: torch.Generator
) -> Tensor:
    """Rows of one class each, `per_class` recovered images, then as many real ones: uint8 (rows * 2 per_class, C, S, S).

    Both are drawn by the generator, not chosen; where there are fewer, the row is filled up with white.
    """
    images, tiles = to_uint8(resize(batch.images, split.images.shape[-1])).cpu(), []
    for label, number in enumerate(classes):
        for members in (images[batch.labels.cpu() == label], split.images[split.labels == number]):
            drawn = members[torch.randperm(len(members), generator=draws)[:per_class]]
            tiles += [drawn, drawn.new_full((per_class - len(drawn), *drawn.shape[1:]), 255)]
    return torch.cat(tiles)


def judge(
    pool: TeacherPool,
    teacher_ids: Sequence[int],
    batches: Sequence[PseudoBatch],
    sets: Mapping[str, DatasetSpec],
    data_root: Path,
    size: int,
    draws: torch.Generator,
) -> tuple[Tensor, Grid]:
    """What networks trained on real images of the teachers' `sets` name recovered images, among each teacher's classes.

    Returns whether they are right (M,) of bool, and a picture with 6 recovered beside 6 real images in each row of twelve.
    """
    rows = [pool.rows[teacher_id] for teacher_id in teacher_ids]
    splits = {row.dataset: load_split(sets[row.dataset], "meta_train", data_root, size) for row in rows}
    judges = {name: train_judge(split, sets[name], pool.device) for name, split in splits.items()}
    hits, tiles, shows = [], [], []
    for row, batch in zip(rows, batches, strict=True):
        split = splits[row.dataset]
        labels = [pool.class_names[class_id].removeprefix(f"{row.dataset}/") for class_id in batch.class_ids]
        if strange := [label for label in labels if label not in split.class_names]:
            raise UserError(f"--judge: {row.path} knows {shown(strange)}, of which {row.dataset} has no images")
        classes = [split.class_names.index(label) for label in labels]
        hits.append(recognised(judges[row.dataset], batch, classes, sets[row.dataset], size))
        tiles.append(beside_real(batch, split, classes, 6, draws))
        shows += [f"{label} of {row.path.stem}, recovered left, real right" for label in labels]
    return torch.cat(hits), Grid(torch.cat(tiles), 12, shows)


def sets_of(domains: Iterable[DatasetSpec]) -> dict[str, DatasetSpec]:
    """The image sets that a teacher may be of, by name: those of the table and the run's own."""
    return SPECS | {spec.name: spec for spec in domains}


def check_judged(pool: TeacherPool, sets: Mapping[str, DatasetSpec], data_root: Path) -> None:
    """Raise `UserError` where no real images can tell what a teacher's recovered images should show."""
    if not len(pool):
        raise UserError("--judge looks at images recovered from teachers, and this method has none")
    for row in pool.rows:
        if row.dataset not in sets or not csv_path(sets[row.dataset], "meta_train", data_root).is_file():
            raise UserError(
                f"--judge needs the real images that a teacher was trained on: those of {row.path} ({row.dataset}) are no "
                f"image set below {data_root}; leave it out, or name the set in the list's column dataset ({', '.join(SPECS)})"
            )
        if not row.class_names:
            raise UserError(f"--judge needs the names of the teachers' classes; {row.path} has only numbers (--class_order)")
