"""Training the teachers, by the recipe that the papers share.

The best epoch's weights are kept by copy. In all the papers' code the "best" state shares memory with the network, so that what
they keep is the last epoch's.
"""

import copy
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from datasets.registry import DatasetSpec
from datasets.split import ImageSplit, load_split
from datasets.subsets import disjoint_classes, draw_classes, train_and_held_out
from methods.teachers.manifest import TeacherRow, pool_folder, pool_specs, read_manifest, teacher_size, write_manifest
from models import BACKBONES, FOREIGN, create_model, model_names
from models.backbone import Backbone
from utils import checkpoint, cli, distributed, seed
from utils.errors import Stopped, UserError
from utils.files import locked
from utils.images import channels_last, normalise, take, to_float
from utils.names import shown
from utils.progress import Progress

TOGETHER_ON_A_GPU = 25
DISJOINT_MILESTONES = (30, 40, 50)  # of pools of disjoint classes (PURER)


@dataclass(frozen=True)
class Recipe:
    """How one teacher is trained; `None` means the value of the image set, the architecture or the kind of pool."""

    epochs: int | None = None
    lr: float = 1e-2
    batch_size: int = 128
    milestones: tuple[int, ...] | None = None
    clip: float = 50.0
    together: int | None = None  # teachers trained at once; None: one on a CPU, tens on a GPU

    def milestones_of(self, arch: str) -> list[int]:
        """The epochs after which the rate falls: the recipe's own, or those of the architecture."""
        return list(BACKBONES.get(arch, FOREIGN).trained_by.milestones if self.milestones is None else self.milestones)

    def settings(self, arch: str, epochs: int, seed_value: int) -> dict[str, Any]:
        """What a teacher's weights depend on, beside its images."""
        return {
            "epochs": epochs, "seed": seed_value, "lr": self.lr, "batch_size": self.batch_size,
            "milestones": self.milestones_of(arch), "clip": self.clip,
        }  # fmt: skip


def add_recipe_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("recipe")
    group.add_argument("--pretrain_epochs", type=cli.count, help="epochs (default: the set's, 60; CUB 100)")
    group.add_argument("--pretrain_lr", type=cli.rate, default=Recipe.lr, help="learning rate")
    group.add_argument("--batch_size", type=cli.count, default=Recipe.batch_size, help="images a step")
    group.add_argument(
        "--milestones",
        type=cli.whole(0),
        nargs="*",
        help="epochs that make the rate a fifth (conv4 70, ResNets 30 50 80; disjoint: 30 40 50)",
    )
    group.add_argument("--together", type=cli.count, help="teachers trained at once (default: 1 on a CPU, 25 on a GPU)")
    group.add_argument("--overwrite", action="store_true", help="train finished teachers again")


def recipe_from(args: Namespace) -> Recipe:
    """The recipe that the flags of `add_recipe_flags` ask for."""
    milestones = None if args.milestones is None else tuple(args.milestones)
    return Recipe(args.pretrain_epochs, args.pretrain_lr, args.batch_size, milestones, together=args.together)


def make_optimizer(
    parameters: Iterable[torch.Tensor], arch: str, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """As the table of backbones says the architecture is trained, where the recipe does not name other milestones."""
    how = BACKBONES.get(arch, FOREIGN).trained_by
    optimizer = how.optimizer(parameters, lr=recipe.lr, **how.settings)  # type: ignore[call-arg]
    return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, recipe.milestones_of(arch), gamma=0.2)


def train_together(
    networks: Sequence[Backbone],
    arch: str,
    train: Sequence[tuple[torch.Tensor, torch.Tensor]],
    held_out: Sequence[tuple[torch.Tensor, torch.Tensor]],
    spec: DatasetSpec,
    recipe: Recipe,
    generators: Sequence[torch.Generator],
    progress: Progress,
) -> list[tuple[dict[str, torch.Tensor], float]]:
    """`train_teacher` for several networks of one architecture with as many images each, in one mapped computation.

    Each has its own images, order, weights and clipping, so that it becomes what it would have become alone; a GPU, which
    small networks leave idle, then trains tens at a time.
    """
    params, buffers = torch.func.stack_module_state(list(networks))
    base = copy.deepcopy(networks[0]).to("meta")
    leaves = list(params.values())
    optimizer, schedule = make_optimizer(leaves, arch, recipe)

    def loss_of(own: dict, running: dict, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(base, (own, running), (images,)), labels)

    best = [(-1.0, unstacked(params, buffers, place)) for place in range(len(networks))]
    count = len(train[0][0])
    for _ in range(recipe.epochs or spec.pretrain_epochs):
        base.train()
        orders = torch.stack([torch.randperm(count, generator=generator) for generator in generators]).to(leaves[0].device)
        for batch in orders.split(recipe.batch_size, dim=1):  # (K, B)
            images = torch.stack([_prepare(take(own[0], chosen), spec) for own, chosen in zip(train, batch, strict=True)])
            labels = torch.stack([own[1][chosen] for own, chosen in zip(train, batch, strict=True)])
            losses = torch.func.vmap(loss_of)(params, buffers, images, labels)  # (K,)
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            _clip_each(leaves, recipe.clip)
            optimizer.step()
        schedule.step()
        _check_finite(leaves, recipe)
        for place, network in enumerate(networks):
            state = unstacked(params, buffers, place)
            network.load_state_dict(state)
            found = accuracy(network, *(held_out if len(held_out[place][0]) else train)[place], spec)
            best[place] = max(best[place], (found, state), key=lambda pair: pair[0])
        progress.update(len(networks))
        progress.set_postfix_str(f"best {100 * sum(value for value, _ in best) / len(best):.1f} % on average")
    return [(state, value) for value, state in best]


def unstacked(params: dict, buffers: dict, place: int) -> dict[str, torch.Tensor]:
    """A copy of the state of one of several stacked networks."""
    return {name: value[place].detach().clone() for name, value in (params | buffers).items()}


def _clip_each(leaves: Sequence[torch.Tensor], limit: float) -> None:
    """Scale the gradient of each stacked network down to the norm `limit`, where it is longer."""
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    norms = torch.stack([grad.flatten(1).square().sum(1) for grad in grads]).sum(0).sqrt()  # (K,)
    scale = (limit / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(scale.view(-1, *[1] * (grad.ndim - 1)))


def _check_finite(parameters: Iterable[torch.Tensor], recipe: Recipe) -> None:
    """Raise `UserError` where training has failed, so that no such teacher is ever kept."""
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise UserError(f"the weights of a teacher are not finite: try a smaller --pretrain_lr than {recipe.lr:g}")


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
    progress: Progress,
) -> tuple[dict[str, torch.Tensor], float]:
    """Train on uint8 images (M, C, S, S) and labels (M,); return a copy of the best epoch's weights and its accuracy."""
    images, labels = train
    optimizer, schedule = make_optimizer(network.parameters(), arch, recipe)
    best, best_state = -1.0, network.loadable.state_dict()
    for _ in range(recipe.epochs or spec.pretrain_epochs):
        network.train()
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for batch in order.split(recipe.batch_size):
            loss = F.cross_entropy(network(_prepare(take(images, batch), spec)), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
            optimizer.step()
        schedule.step()
        _check_finite(network.parameters(), recipe)
        epoch_accuracy = accuracy(network, *(held_out if len(held_out[0]) else train), spec)
        if epoch_accuracy > best:
            best, best_state = epoch_accuracy, copy.deepcopy(network.loadable.state_dict())
        progress.update()
        progress.set_postfix_str(f"accuracy {100 * epoch_accuracy:.1f}, best {100 * best:.1f} %")
    return best_state, best


def pretrain_pools(args: Namespace, recipe: Recipe, device: torch.device, overwrite: bool = False) -> None:
    """Train every pool that the command line names, skipping finished teachers, and print the accuracies."""
    if args.num_class_per_task:  # as PURER trains them
        milestones, epochs = recipe.milestones, recipe.epochs
        recipe = replace(recipe, milestones=DISJOINT_MILESTONES if milestones is None else milestones, epochs=epochs or 60)
    for spec, arch in pool_specs(args):
        _pretrain_pool(args, spec, arch, recipe, device, overwrite)


def _pretrain_pool(
    args: Namespace, spec: DatasetSpec, arch: str, recipe: Recipe, device: torch.device, overwrite: bool
) -> None:
    split = load_split(spec, "meta_train", args.data_root, teacher_size(args, spec)).to(device)
    folder = pool_folder(args, spec, arch)
    folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if distributed.rank() else locked(folder):
        try:
            rows = train_pool(folder, spec, arch, split, _class_groups(args, split, spec), recipe, args.seed, overwrite)
        except KeyboardInterrupt:
            raise Stopped(f"stopped; the teachers that are finished lie in {folder}, and the same command goes on") from None
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
    names = [f"teacher_{teacher_id:03d}.pth" for teacher_id in range(len(groups))]
    wanted = recipe.settings(arch, epochs, seed_value)
    rows = {row.path.name: row for row in read_manifest(manifest)} if manifest.is_file() else {}
    if overwrite:  # before any new file is there, no line of an old one is left to say what it is
        rows = {name: row for name, row in rows.items() if name not in names}
        if distributed.rank() == 0:
            _list(rows, manifest)
    finished = {name: row for name, row in rows.items() if row.path.is_file()}
    _check_finished(list(finished.values()), split, spec, wanted)
    share = range(len(groups))[distributed.share()]
    todo = [teacher_id for teacher_id in share if names[teacher_id] not in finished]
    at_once = recipe.together or (TOGETHER_ON_A_GPU if device.type == "cuda" and arch in model_names() else 1)
    with Progress(total=epochs * len(share), initial=epochs * (len(share) - len(todo)), unit="epoch") as progress:
        for first in range(0, len(todo), at_once):
            chunk = todo[first : first + at_once]
            progress.set_description(f"{spec.name} {arch} teachers {chunk[0] + 1} to {chunk[-1] + 1} of {len(groups)}")
            trained = _train(
                chunk, [groups[teacher_id] for teacher_id in chunk], spec, arch, split, recipe, seed_value, progress
            )
            for teacher_id, (state, best) in zip(chunk, trained, strict=True):
                name, class_ids = names[teacher_id], groups[teacher_id]
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
                weights = {key: value.cpu() for key, value in state.items()}
                checkpoint.save({"state_dict": weights, "settings": wanted}, row.path)
                rows[name] = row
            if distributed.rank() == 0:
                _list(rows, manifest)
    if distributed.size() > 1:  # the first process hears of the others' teachers
        rows |= dict(distributed.gathered([(name, rows[name]) for name in names[distributed.share()]]))
        if distributed.rank() == 0:
            _list(rows, manifest)
    return [rows[name] for name in names]


def _check_finished(finished: Sequence[TeacherRow], split: ImageSplit, spec: DatasetSpec, wanted: dict[str, Any]) -> None:
    """Raise `UserError` for teachers of classes that the set no longer has; say which were trained with other settings."""
    for row in finished:
        if strange := [name for name in row.class_names if name not in split.class_names]:
            raise UserError(
                f"{row.path} knows {shown(strange)}, which {spec.name} does not have: were folders renamed? "
                "Rename them back, or train the pool again with --overwrite"
            )
    others = [kept for row in finished if (kept := _settings_of(row)) != {name: wanted[name] for name in kept}]
    if others:
        how = ", ".join(f"{name} {value}" for name, value in others[0].items())
        print(
            f"note: {len(others)} finished teachers in {finished[0].path.parent} were trained with other settings "
            f"({how}) and are kept; --overwrite trains them again"
        )


def _settings_of(row: TeacherRow) -> dict[str, Any]:
    """How a finished teacher was trained, as far as its file or its line in the list says."""
    return checkpoint.load(row.path).get("settings") or {"epochs": row.epochs, "seed": row.seed}


def _list(rows: Mapping[str, TeacherRow], manifest: Path) -> None:
    """Write the pool's list, in the order of names; a pool without teachers has none."""
    if rows:
        write_manifest([rows[name] for name in sorted(rows)], manifest)
    else:
        manifest.unlink(missing_ok=True)


def _train(
    teacher_ids: Sequence[int],
    groups: Sequence[Sequence[int]],
    spec: DatasetSpec,
    arch: str,
    split: ImageSplit,
    recipe: Recipe,
    seed_value: int,
    progress: Progress,
) -> list[tuple[dict[str, torch.Tensor], float]]:
    """Some teachers, each from its own seed: together where they have as many images, by halves where memory is short."""
    device, size = split.images.device, split.images.shape[-1]
    streams = [seed.generator(seed_value, "teacher", spec.name, arch, teacher_id) for teacher_id in teacher_ids]
    networks = []
    for stream, class_ids in zip(streams, groups, strict=True):
        with seed.kept(stream.initial_seed() % 2**63):
            networks.append(create_model(arch, len(class_ids), size).to(device))
    train, held_out = zip(*[train_and_held_out(split, class_ids, seed_value) for class_ids in groups], strict=True)
    sizes = {(len(labels), len(class_ids)) for (_, labels), class_ids in zip(train, groups, strict=True)}
    if len(networks) == 1 or len(sizes) > 1:
        return [
            train_teacher(network, arch, some, others, spec, recipe, stream, progress)
            for network, some, others, stream in zip(networks, train, held_out, streams, strict=True)
        ]
    try:
        return train_together(networks, arch, train, held_out, spec, recipe, streams, progress)
    except torch.OutOfMemoryError:
        del networks  # what failed holds memory until the block is left: go on behind it
    half = len(teacher_ids) // 2
    pieces = [(teacher_ids[:half], groups[:half]), (teacher_ids[half:], groups[half:])]
    return [one for ids, some in pieces for one in _train(ids, some, spec, arch, split, recipe, seed_value, progress)]


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
