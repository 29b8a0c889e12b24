"""A pool of teachers: reading them, and handing them out."""

import sys
from argparse import ArgumentParser, _ArgumentGroup
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import torch
from torch import nn

from datasets.registry import SPECS, DatasetSpec
from methods.services.api import NO_LIMITS, Api, add_api_flags
from methods.services.black_box import BlackBox, LocalService, RemoteService
from methods.services.meter import Meter
from methods.teachers.inspection import Finding, inspect
from methods.teachers.manifest import NUMBER, OWN, TeacherRow, as_place, check_row
from methods.teachers.teacher import Teacher
from models import create_model
from models.backbone import Backbone
from models.foreign import TORCHSCRIPT, Foreign, load_torchscript, words_of_torchscript
from models.said import check_said, said_in
from models.state_dicts import Content, in_our_names, load_into, read_content
from utils import checkpoint, cli, distributed, seed
from utils.code import files_of, is_code
from utils.errors import UserError
from utils.files import digest, digest_of_all, text_of
from utils.images import Augmentation, ImageForm
from utils.names import different_classes, look_alike_notes, shown

NEVER_TRAINED = "its running means are all 0: it was never trained"
CACHE_BYTES = 8 << 30  # teachers beyond this much memory are read again when their turn comes


class TeacherPool:
    """The teachers of one or more manifests, loaded when first asked for; none, for a method that needs none.

    `class_names` are the pool's classes, `<set>/<class>`, sorted; a class that several teachers know is one class. `api` is
    what black boxes let through.
    """

    def __init__(
        self,
        rows: Sequence[TeacherRow],
        device: torch.device,
        class_order: Path | None = None,
        api: Api = NO_LIMITS,
    ) -> None:
        self.device, self.api = device, api
        self.meter = Meter()  # of what is asked beside a method's own work
        self._published: dict[Path, Content] = {}  # files of the papers, in our names
        self._findings: dict[int, Finding] = {}
        self.rows = [row if row.class_ids else self._complete(row, class_order) for row in rows]
        if class_order is not None and self.rows and not self._published:
            print(f"note: --class_order {class_order}: these teachers are listed with their classes already", file=sys.stderr)
        if self._published and class_order is None:
            print(
                "note: these teachers number their classes in the unsorted order of some folder; "
                "the numbers are used as given (--class_order FILE names them)",
                file=sys.stderr,
            )
        self.class_names = sorted({key for row in self.rows for key in row.class_keys})
        self._index = {key: index for index, key in enumerate(self.class_names)}
        self._loaded: OrderedDict[int, Teacher] = OrderedDict()
        self._given: dict[int, Teacher] = {}  # that no file can give back

    @classmethod
    def of(cls, teachers: Sequence[Teacher], dataset: str = OWN) -> "TeacherPool":
        """A pool of teachers that are in memory already, all on one device; a class of one name is one class.

        Raises `UserError` for a class that stands twice, and for a mean or std of another scale than that of [0, 1].
        """
        rows = [
            TeacherRow(
                Path(f"teacher_{number:03d}"), teacher.arch, tuple(range(teacher.way)),
                different_classes(teacher.class_names, f"teacher {number}"),
                teacher.form.size, teacher.form.mean, teacher.form.std, dataset,
            )
            for number, teacher in enumerate(teachers)
        ]  # fmt: skip
        for row in rows:
            try:
                check_row(row)
            except ValueError as error:
                raise UserError(f"{row.path}: {error}") from error
        pool = cls(rows, next(teachers[0].parameters()).device)
        for number, (row, teacher) in enumerate(zip(rows, teachers, strict=True)):
            given = Teacher(
                teacher.network, teacher.class_names, teacher.form, pool._ids_of(row), teacher.outputs, teacher.arch
            )
            pool._given[number] = given
        return pool

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Teacher]:
        return (self[teacher_id] for teacher_id in range(len(self)))

    def __getitem__(self, teacher_id: int) -> Teacher:
        """Raises `UserError` for a service, into which nobody can look."""
        if teacher_id in self._given:
            return self._given[teacher_id]
        row = self.rows[teacher_id]
        if row.listed is not None:
            raise UserError(f"{row.path} is a service, and this work looks inside its teachers: choose a black-box method")
        if teacher_id not in self._loaded:
            self._loaded[teacher_id] = self._load(teacher_id)
            while len(self._loaded) > 1 and sum(map(_num_bytes, self._loaded.values())) > CACHE_BYTES:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(teacher_id)
        return self._loaded[teacher_id]

    def black_box(self, teacher_id: int, meter: Meter) -> BlackBox:
        """A teacher, or a service, of which only the answers can be had; `meter` counts them."""
        row = self.rows[teacher_id]
        service = LocalService(self[teacher_id].answering) if row.listed is None else row.listed.service
        api = replace(self.api, images="uint8") if self.takes_bytes(teacher_id) else self.api
        return BlackBox(service, str(row.path), self._ids_of(row), row.image_size, row.std, meter, api)

    def takes_bytes(self, teacher_id: int) -> bool:
        """Whether images are rounded to 8 bits before the black box sees them."""
        server = self.server_of(teacher_id)
        return self.api.images == "uint8" or (server is not None and server.takes_bytes)

    @property
    def servers(self) -> list[RemoteService]:
        """The teachers behind HTTP, whom asking costs somebody something."""
        return [server for teacher_id in range(len(self)) if (server := self.server_of(teacher_id))]

    def server_of(self, teacher_id: int) -> RemoteService | None:
        """A teacher behind HTTP, which says itself how it is asked."""
        listed = self.rows[teacher_id].listed
        return listed.service if listed is not None and isinstance(listed.service, RemoteService) else None

    def some(self, teacher_ids: Iterable[int], way: int | None = None) -> list[Teacher]:
        """These teachers; with `way`, one that knows more classes is asked about so many of them alone."""
        chosen = [self[teacher_id] for teacher_id in teacher_ids]
        return [teacher.narrowed(way) for teacher in chosen] if way else chosen

    def sample(self, count: int, way: int | None = None) -> list[Teacher]:
        """`count` different teachers at random (all, in random order, where there are fewer), as `some` gives them."""
        return self.some(torch.randperm(len(self))[:count].tolist(), way)

    @cached_property
    def augmentation(self) -> Augmentation:
        """What may be done to the teachers' images without changing their class, as far as their image sets say."""
        specs = {SPECS.get(row.dataset) for row in self.rows}
        recolour = bool(specs) and all(spec is not None and spec.recolour for spec in specs)
        return Augmentation(all(spec is None or spec.flip for spec in specs), recolour)

    def mirrors(self, specs: Iterable[DatasetSpec]) -> bool:
        """Whether a mirrored image says the same as before, in what the teachers know and in these sets."""
        return self.augmentation.flip and all(spec.flip for spec in specs)

    def finding(self, teacher_id: int) -> Finding:
        """What was found when the teacher was looked at. Raises `UserError` where it cannot be used."""
        _ = self[teacher_id]
        return self._findings.get(teacher_id, Finding())

    def check(self, inside: bool = True, inverts: bool = True) -> None:
        """Read every teacher once, so that a file that is missing, damaged or wrong shows before hours of work.

        What a person should know of them is said on stderr. Services must be there, and are not looked into where nobody wants
        to look `inside`; one process alone asks them. With `inverts` a gradient must reach the pixels (`UserError`).
        """
        notes: dict[str, list[str]] = {}
        for teacher_id, row in enumerate(self.rows):
            if not inside and (server := self.server_of(teacher_id)):
                server.contact()
            if inside or row.listed is None:
                finding = self.finding(teacher_id)
                if inside and inverts and not finding.invertible:
                    raise UserError(f"{row.path} passes no gradient to the images: it is of use as a black box alone")
                for note in finding.notes:
                    notes.setdefault(note, []).append(str(row.path))
        for note, places in notes.items():
            print(f"note: {shown(places)}: {note}", file=sys.stderr)
        for note in look_alike_notes(self.class_names):
            print(note, file=sys.stderr)
        if len(self) and not inside and distributed.size() > 1:
            raise UserError("black boxes are asked by one process: run this without torchrun")

    def check_fit(self, way: int) -> None:
        """Raise `UserError` where a teacher has fewer classes than a learner of `way` outputs that is to imitate it."""
        odd = next((row for row in self.rows if len(row.class_ids) < way), None)
        if odd is not None:
            raise UserError(
                f"teachers are distilled into a learner of {way} classes, and {odd.path} has {len(odd.class_ids)}: "
                "lower --way_train to that"
            )

    def fingerprint(self) -> list[tuple]:
        """What identifies the pool's teachers, each by itself."""
        return [self.fingerprint_of(teacher_id) for teacher_id in range(len(self))]

    def fingerprint_of(self, teacher_id: int) -> tuple:
        """What changes when a teacher does: its file's content, the code that builds it, and what the list says of it.

        For a service what it says itself and how it is asked, and nothing lasting where it says nothing.
        """
        row = self.rows[teacher_id]
        content, code = self.content_of(teacher_id)
        arch = f"{row.arch} {code}" if code else row.arch
        asked_as = (service.asked_as,) if (service := self.server_of(teacher_id)) else ()
        return row.path.name, content, row.weights, arch, row.class_keys, row.image_size, row.mean, row.std, *asked_as

    def content_of(self, teacher_id: int) -> tuple[str, str]:
        """Digests of a teacher's weights, and of the code of somebody's that builds it (else nothing)."""
        row = self.rows[teacher_id]
        code = files_of(row.network) if is_code(row.network) else ()
        built_by = digest_of_all(code) if code else ""
        if row.listed is not None or teacher_id in self._given:
            return (row.listed.fingerprint if row.listed else "") or uuid4().hex, built_by
        return digest(row.path), built_by

    def _load(self, teacher_id: int) -> Teacher:
        row = self.rows[teacher_id]
        form, notes = ImageForm(row.image_size, row.mean, row.std), []
        network: Backbone
        with seed.kept():  # when a teacher is loaded must not change what the run draws
            if row.arch == TORCHSCRIPT:
                network = load_torchscript(row.path, len(row.class_ids))
                said = said_in([words_of_torchscript(row.path, network)])
                check_said(said, row.class_names, row.image_size, row.mean, row.std, "", str(row.path))
            else:
                content = self._published.get(row.path) or _read(row)
                outputs = len(content.state["head.bias"]) if row.path in self._published else len(row.class_ids)
                network = create_model(row.network or row.arch, outputs, row.image_size)
                notes += load_into(network, content, str(row.path))
                _check_ids(content.class_ids, row)
                check_said(content.said, row.class_names, row.image_size, row.mean, row.std, row.arch, str(row.path))
        teacher = Teacher(network.to(self.device), row.class_keys, form, self._ids_of(row), arch=row.arch)
        notes += untrained(network)
        if teacher_id not in self._findings:  # our own networks are what they seem, whatever their weights
            found = inspect(teacher, str(row.path)) if isinstance(network, Foreign) else Finding()
            self._findings[teacher_id] = replace(found, notes=(*notes, *found.notes))
        return teacher

    def _ids_of(self, row: TeacherRow) -> list[int]:
        return [self._index[key] for key in row.class_keys]

    def _complete(self, row: TeacherRow, class_order: Path | None) -> TeacherRow:
        """Fill the class ids of a papers' file from its content, or from its number where it holds only weights."""
        if row.dataset not in SPECS:
            raise UserError(f"{row.path}: list teachers of an image set of your own in a teachers.csv (docs/guide.md)")
        content, classes = _read(row), SPECS[row.dataset].classes[0]
        published = replace(content, state=in_our_names(content.state))
        if "head.bias" not in published.state:
            raise UserError(f"{row.path} is no {row.arch} of the papers' code: it has no linear head")
        self._published[row.path] = published
        class_ids = published.class_ids
        way = len(published.state["head.bias"])
        if class_ids is None:
            start = way * int(NUMBER.search(row.path.stem).group(1))  # type: ignore[union-attr]
            class_ids = list(range(start, min(start + way, classes)))
        if not class_ids or len(class_ids) > way or len(set(class_ids)) < len(class_ids):
            of = f"classes {shown(map(str, class_ids))}" if class_ids else f"no class of the {classes}"
            raise UserError(f"{row.path} is said to know {of}, and answers for {way}: is it the file of another pool?")
        names: tuple[str, ...] = ()
        if class_order is not None:
            order = _order_of(class_order)
            if max(class_ids) >= len(order):
                raise UserError(
                    f"--class_order {class_order} names {len(order)} classes; {row.path} has class {max(class_ids)}"
                )
            names = tuple(order[class_id] for class_id in class_ids)
        accuracy = row.accuracy if published.accuracy is None else published.accuracy
        return replace(row, class_ids=tuple(class_ids), class_names=names, accuracy=accuracy)


def _order_of(path: Path) -> tuple[str, ...]:
    """The class names in a file: one a line, which may begin with its number, or all in one line with blanks between.

    Raises `UserError` for one that stands there twice.
    """
    lines = [line.strip() for line in text_of(path).splitlines() if line.strip()]
    if any(all(line.startswith(f"{number} ") for number, line in enumerate(lines, first)) for first in (0, 1)):
        lines = [line.partition(" ")[2] for line in lines]
    return different_classes(lines if len(lines) > 1 else " ".join(lines).split(), f"--class_order {path}")


def _read(row: TeacherRow) -> Content:
    if row.path.is_file() and checkpoint.is_torchscript(row.path):
        raise UserError(
            f"{row.path} is a program of TorchScript: save its state_dict instead (torch.save(network.state_dict(), ...)), or "
            f"list it with the arch {TORCHSCRIPT} and add --allow_code {row.path}"
        )
    return read_content(checkpoint.load(row.path), str(row.path), row.weights)


def _check_ids(said: list[int] | None, row: TeacherRow) -> None:
    """Raise `UserError` where a papers' file has its classes in another order than the list."""
    listed = [int(number) for number in row.class_ids]
    if said and said != listed and sorted(said) == sorted(listed) and not row.class_names:  # names tell more than numbers
        raise UserError(
            f"{row.path} has the classes in the order {shown(map(str, said))}; it is listed with {shown(map(str, listed))}"
        )


def untrained(network: nn.Module) -> list[str]:
    """A note where all running means are exactly 0, as they are before the first step of training."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    means = [layer.running_mean for layer in norms if layer.running_mean is not None]
    return [NEVER_TRAINED] if means and not any(bool(m.any()) for m in means) else []


def _num_bytes(teacher: Teacher) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in teacher.state_dict().values())


def add_allow_code_flag(group: _ArgumentGroup) -> None:
    cli.may_change(
        "always",
        group.add_argument(
            "--allow_code", action="extend", nargs="+", metavar="PLACE",
            help="code of yours that may run: an arch in a teachers.csv, or a method",
        ),
    )  # fmt: skip


def add_teacher_flags(parser: ArgumentParser) -> None:
    """The flags that say where existing teachers are."""
    group = parser.add_argument_group("existing teachers")
    listed = group.add_argument(
        "--teachers", type=as_place, action="append",
        help="a teachers.csv or its folder, a server's URL, or module:function that returns services; may be repeated",
    )  # fmt: skip
    cli.may_change("always", listed)
    add_allow_code_flag(group)
    add_api_flags(group)
    group.add_argument(
        "--pretrained_path_prefix", "--pretrained_prefix", type=Path, help="root of the papers' own trees of teachers"
    )
    group.add_argument("--class_order", type=Path, help="file with the class names in the order the papers' ids count")
