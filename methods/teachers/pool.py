"""A pool of teachers: reading them, and handing them out."""

import sys
from argparse import ArgumentParser
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from datasets.registry import SPECS
from methods.teachers.manifest import NUMBER, TeacherRow
from models import create_model
from models.backbone import Backbone
from models.published import Published, read_published
from utils import checkpoint
from utils.errors import UserError
from utils.images import channels_last, normalise, resize

CACHE_BYTES = 8 << 30  # teachers beyond this much memory are read again when their turn comes


class Teacher(nn.Module):
    """A frozen classifier that takes images (B, C, H, W) in [0, 1] at any size.

    `class_ids` are indices into the pool's `class_names`; output i is class `class_ids[i]`. Gradients reach the images,
    never the weights.
    """

    def __init__(self, network: Backbone, row: TeacherRow, class_ids: Sequence[int]) -> None:
        super().__init__()
        self.network: Backbone = network.requires_grad_(False).eval()
        self.row = row
        self.class_ids = tuple(class_ids)

    @property
    def way(self) -> int:
        return len(self.class_ids)

    def train(self, mode: bool = True) -> "Teacher":
        """Teachers stay in evaluation mode: their running statistics must not move."""
        return super().train(False)

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        images = normalise(resize(images, self.row.image_size), self.row.mean, self.row.std)
        return channels_last(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(self.prepare(images))[:, : self.way]  # a spare output carries no class

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The input of the head, (B, feature_dim)."""
        return self.network.features(self.prepare(images))


class TeacherPool:
    """The teachers of one or more manifests, loaded when first asked for.

    `class_names` are the pool's classes, `<set>/<class>`, sorted; a class that several teachers know is one class.
    """

    def __init__(self, rows: Sequence[TeacherRow], device: torch.device, class_order: Path | None = None) -> None:
        if not rows:
            raise UserError("the pool has no teachers")
        self.device = device
        self._published: dict[Path, Published] = {}
        self.rows = [row if row.class_ids else self._complete(row, class_order) for row in rows]
        if self._published and class_order is None:
            print(
                "note: these teachers number their classes in the unsorted order of some folder; "
                "the numbers are used as given (--class_order FILE names them)",
                file=sys.stderr,
            )
        self.class_names = sorted({key for row in self.rows for key in row.class_keys})
        self._index = {key: index for index, key in enumerate(self.class_names)}
        self._loaded: OrderedDict[int, Teacher] = OrderedDict()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, teacher_id: int) -> Teacher:
        if teacher_id not in self._loaded:
            self._loaded[teacher_id] = self._load(self.rows[teacher_id])
            while len(self._loaded) > 1 and sum(map(_num_bytes, self._loaded.values())) > CACHE_BYTES:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(teacher_id)
        return self._loaded[teacher_id]

    def sample(self, count: int) -> list[Teacher]:
        """`count` different teachers at random (all, in random order, where there are fewer)."""
        return [self[teacher_id] for teacher_id in torch.randperm(len(self))[:count].tolist()]

    def check(self) -> None:
        """Read every teacher once, so that a file that is missing, damaged or wrong shows before hours of work."""
        for teacher_id in range(len(self)):
            _ = self[teacher_id]

    def fingerprint(self) -> list[tuple[str, int, int]]:
        """What identifies the pool's files: name, size and time of each."""
        return [self.fingerprint_of(teacher_id) for teacher_id in range(len(self))]

    def fingerprint_of(self, teacher_id: int) -> tuple[str, int, int]:
        """The same of one teacher."""
        path = self.rows[teacher_id].path
        return path.name, path.stat().st_size, path.stat().st_mtime_ns

    def _load(self, row: TeacherRow) -> Teacher:
        published = self._published.get(row.path) or read_published(checkpoint.load(row.path), str(row.path))
        outputs = len(published.state["head.bias"]) if row.path in self._published else len(row.class_ids)
        with torch.random.fork_rng(devices=[]):  # when a teacher is loaded must not change what the run draws
            network = create_model(row.arch, outputs, row.image_size)
        checkpoint.load_weights(network, published.state, row.path)
        return Teacher(network.to(self.device), row, [self._index[key] for key in row.class_keys])

    def _complete(self, row: TeacherRow, class_order: Path | None) -> TeacherRow:
        """Fill the class ids of a papers' file from its content, or from its number where it holds only weights."""
        published = read_published(checkpoint.load(row.path), str(row.path))
        if "head.bias" not in published.state:
            raise UserError(f"{row.path} is no {row.arch} of the papers' code: it has no linear head")
        self._published[row.path] = published
        class_ids = published.class_ids
        if class_ids is None:
            way = len(published.state["head.bias"])
            start = way * int(NUMBER.search(row.path.stem).group(1))  # type: ignore[union-attr]
            class_ids = list(range(start, min(start + way, SPECS[row.dataset].classes[0])))
        names: tuple[str, ...] = ()
        if class_order is not None:
            order = class_order.read_text(encoding="utf-8").split()
            if max(class_ids) >= len(order):
                raise UserError(
                    f"--class_order {class_order} names {len(order)} classes; {row.path} has class {max(class_ids)}"
                )
            names = tuple(order[class_id] for class_id in class_ids)
        accuracy = row.accuracy if published.accuracy is None else published.accuracy
        return replace(row, class_ids=tuple(class_ids), class_names=names, accuracy=accuracy)


def _num_bytes(teacher: Teacher) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in teacher.state_dict().values())


def add_teacher_flags(parser: ArgumentParser) -> None:
    """The flags that say where existing teachers are."""
    group = parser.add_argument_group("existing teachers")
    group.add_argument("--teachers", type=Path, action="append", help="a teachers.csv or its folder; may be repeated")
    group.add_argument("--pretrained_path_prefix", "--pretrained_prefix", help="root of the papers' own trees of teachers")
    group.add_argument("--class_order", type=Path, help="file with the class names in the order the papers' ids count")
