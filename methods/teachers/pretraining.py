"""Training the teachers, by the recipe that the papers share."""

import copy
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from datasets.registry import DatasetSpec
from datasets.split import ImageSplit, load_split
from datasets.subsets import disjoint_classes, draw_classes, train_and_held_out
from methods.teachers.manifest import TeacherRow, pool_folder, pool_specs, read_manifest, teacher_size, write_manifest
from models import create_model
from models.backbone import Backbone
from utils import checkpoint, distributed, seed
from utils.errors import UserError
from utils.images import channels_last, normalise, to_float


@dataclass(frozen=True)
class Recipe:
    """How one teacher is trained; `None` means the papers' value for the image set or the kind of pool."""

    epochs: int | None = None
    lr: float = 1e-2
    batch_size: int = 128
    milestones: tuple[int, ...] | None = None
    clip: float = 50.0


def add_recipe_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("recipe")
    group.add_argument("--pretrain_epochs", type=int, help="epochs (default: the set's, 60; CUB 100)")
    group.add_argument("--pretrain_lr", type=float, default=Recipe.lr, help="learning rate")
    group.add_argument("--batch_size", type=int, default=Recipe.batch_size, help="images a step")
    group.add_argument(
        "--milestones", type=int, nargs="*", help="epochs that multiply the rate by 0.2 (ResNets: 30 50 80; disjoint: 30 40 50)"
    )
    group.add_argument("--overwrite", action="store_true", help="train finished teachers again")


def recipe_from(args: Namespace) -> Recipe:
    milestones = None if args.milestones is None else tuple(args.milestones)
    return Recipe(args.pretrain_epochs, args.pretrain_lr, args.batch_size, milestones)


def make_optimizer(
    network: nn.Module, arch: str, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """conv4: Adam without decay, constant rate; ResNets: SGD with momentum .9, weight decay 5e-4, x0.2 at the milestones."""
    if arch == "conv4":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        milestones: tuple[int, ...] = ()
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4)
        milestones = recipe.milestones or ()
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma=0.2)


@torch.no_grad()
def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, spec: DatasetSpec) -> float:
    """Share of uint8 `images` that `network`, in evaluation mode, classifies right."""
    network.eval()
    batches = zip(images.split(500), labels.split(500), strict=True)
    right = sum(int((network(_prepare(x, spec)).argmax(1) == y).sum()) for x, y in batches)
    return right / max(1, len(labels))


def _prepare(images: torch.Tensor, spec: DatasetSpec) -> torch.Tensor:
    return channels_last(normalise(to_float(images), spec.mean, spec.std))


def train_teacher(
    network: Backbone,
    arch: str,
    train: tuple[torch.Tensor, torch.Tensor],
    held_out: tuple[torch.Tensor, torch.Tensor],
    spec: DatasetSpec,
    recipe: Recipe,
    generator: torch.Generator,
    progress: tqdm,
) -> tuple[dict[str, torch.Tensor], float]:
    """Train on uint8 images (M, C, S, S) and labels (M,); return a copy of the best epoch's weights and its accuracy."""
    images, labels = train
    optimizer, schedule = make_optimizer(network, arch, recipe)
    best, best_state = -1.0, network.loadable.state_dict()
    for _ in range(recipe.epochs or spec.pretrain_epochs):
        network.train()
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for batch in order.split(recipe.batch_size):
            loss = F.cross_entropy(network(_prepare(images[batch], spec)), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
            optimizer.step()
        schedule.step()
        epoch_accuracy = accuracy(network, *(held_out if len(held_out[0]) else train), spec)
        if epoch_accuracy > best:
            best, best_state = epoch_accuracy, copy.deepcopy(network.loadable.state_dict())
        progress.update()
        progress.set_postfix_str(f"accuracy {100 * epoch_accuracy:.1f}, best {100 * best:.1f} %")
    return best_state, best


def pretrain_pools(args: Namespace, recipe: Recipe, device: torch.device, overwrite: bool = False) -> None:
    """Train every pool that the command line names, skipping finished teachers, and print the accuracies."""
    if recipe.milestones is None:
        recipe = replace(recipe, milestones=(30, 40, 50) if args.num_class_per_task else (30, 50, 80))
    for spec, arch in pool_specs(args):
        _pretrain_pool(args, spec, arch, recipe, device, overwrite)


def _pretrain_pool(
    args: Namespace, spec: DatasetSpec, arch: str, recipe: Recipe, device: torch.device, overwrite: bool
) -> None:
    split = load_split(spec, "meta_train", args.data_root, teacher_size(args, spec)).to(device)
    folder = pool_folder(args, spec, arch)
    rows = train_pool(folder, spec, arch, split, _class_groups(args, split, spec), recipe, args.seed, overwrite)
    accuracies = [row.accuracy for row in rows]
    mean, worst = sum(accuracies) / len(accuracies), min(accuracies)
    print(
        f"{spec.name} {arch}: {len(accuracies)} teachers, accuracy on held-out images: "
        f"mean {100 * mean:.1f} %, worst {100 * worst:.1f} %  ({folder / 'teachers.csv'})"
    )


def train_pool(
    folder: Path,
    spec: DatasetSpec,
    arch: str,
    split: ImageSplit,
    groups: Sequence[Sequence[int]],
    recipe: Recipe,
    seed_value: int = 0,
    overwrite: bool = False,
) -> list[TeacherRow]:
    """Train one teacher for each group of class ids of `split`, on its device; finished ones in `folder` are kept.

    Returns the rows of the manifest, which is written after each teacher, in the order of the groups. Several processes
    share the teachers.
    """
    device, size = split.images.device, split.images.shape[-1]
    epochs = recipe.epochs or spec.pretrain_epochs
    manifest = folder / "teachers.csv"
    rows = {row.path.name: row for row in read_manifest(manifest)} if manifest.is_file() else {}
    finished = {} if overwrite else {name: row for name, row in rows.items() if row.path.is_file()}
    others = [row for row in finished.values() if (row.epochs, row.seed) != (epochs, seed_value)]
    if others:
        print(
            f"note: {len(others)} finished teachers in {folder} were trained with other settings "
            f"(epochs {others[0].epochs}, seed {others[0].seed}) and are kept; --overwrite trains them again"
        )
    names = [f"teacher_{teacher_id:03d}.pth" for teacher_id in range(len(groups))]
    with tqdm(total=epochs * len(groups), unit="epoch", desc=f"{spec.name} {arch}") as progress:
        for teacher_id, (name, class_ids) in list(enumerate(zip(names, groups, strict=True)))[distributed.share()]:
            if name in finished:
                progress.update(epochs)
                continue
            progress.set_description(f"{spec.name} {arch} teacher {teacher_id + 1}/{len(groups)}")
            stream = seed.generator(seed_value, "teacher", spec.name, arch, teacher_id)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(stream.initial_seed() % 2**63)
                network = create_model(arch, len(class_ids), size).to(device)
            train, held_out = train_and_held_out(split, class_ids, seed_value)
            state, best = train_teacher(network, arch, train, held_out, spec, recipe, stream, progress)
            row = TeacherRow(
                folder / name,
                arch,
                tuple(class_ids),
                tuple(split.class_names[class_id] for class_id in class_ids),
                size,
                spec.mean,
                spec.std,
                spec.name,
                best,
                epochs,
                seed_value,
            )
            checkpoint.save({"state_dict": {key: value.cpu() for key, value in state.items()}}, row.path)
            rows[name] = row
            if distributed.rank() == 0:
                write_manifest([rows[name] for name in sorted(rows)], manifest)
    if distributed.size() > 1:  # the first process hears of the others' teachers
        rows |= dict(distributed.gathered([(name, rows[name]) for name in names[distributed.share()]]))
        if distributed.rank() == 0:
            write_manifest([rows[name] for name in sorted(rows)], manifest)
    return [rows[name] for name in names]


def _class_groups(args: Namespace, split: ImageSplit, spec: DatasetSpec) -> list[list[int]]:
    classes, way = len(split.class_names), args.num_class_per_task or args.way_pretrain
    if not 2 <= way <= classes:
        raise UserError(f"a teacher of {way} classes cannot be trained: {spec.name} meta_train has {classes}, 2 are the least")
    if args.num_class_per_task:
        return disjoint_classes(classes, way)
    count = 100 if args.pre_model_num is None else args.pre_model_num
    if count < 1:
        raise UserError(f"--pre_model_num {count}: expected 1 or more")
    return [draw_classes(classes, way, teacher_id, args.seed) for teacher_id in range(count)]
