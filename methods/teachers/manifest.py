"""Where teachers are listed: `teachers.csv`, the folders of the papers' own code, and services."""

import math
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import pandas as pd

from datasets.own import get_domains
from datasets.registry import DATA_ROOT, IMAGENET, SPECS, DatasetSpec, is_mix
from methods.services.answer_store import AnswerStore
from methods.services.black_box import ListedService, services_of
from methods.services.client import TOKEN, Client, Credential
from methods.services.form import ModelForm, check_form
from methods.services.onnx_model import ONNX, OnnxModel, digest_of
from methods.services.remote import RemoteModel
from methods.services.servers import Asking, check_url, models_of
from models import MIXED_ARCHITECTURES, model_names
from models.foreign import TORCHSCRIPT, is_foreign
from utils import cli
from utils.code import beside, is_code
from utils.errors import UserError
from utils.files import read_csv, write_text
from utils.names import meant, tidy, tidy_class

NEEDED = ["path", "arch", "image_size", "mean", "std"]  # of somebody's own list, and class_ids or class_names
NEEDED_OF_SERVICES = ["path", "arch", "image_size"]
LEAST_STD = 0.003  # of pixels in [0, 1]: 1/255 belongs to networks that take bytes
OWN = "own"  # the image set of teachers whose list names none
COLUMNS = ["path", "arch", "class_ids", "class_names", "image_size", "mean", "std", "dataset", "accuracy", "epochs", "seed"]
OF_SERVICES = ["model", "version", "layout", "dtype", "input", "output", "answers", "binary", "fingerprint"]
MORE = ["weights", "token", "header", "batch"]  # columns that a list may have, too
NUMBER = re.compile(r"(\d+)$")
SERVICE = "service"  # the arch of a model of an inference server, whose path is the server's URL
PLACE_OF_SERVICES = re.compile(r"https?://|.*[\w]:\w+$")  # a URL, or module:function


@dataclass(frozen=True)
class TeacherRow:
    """One line of a manifest. `class_ids` count the sorted class names of the set; `class_names` may be empty."""

    path: Path
    arch: str
    class_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dataset: str
    accuracy: float = float("nan")  # 0..1, on the teacher's held-out images
    epochs: int = 0
    seed: int = 0
    weights: str = ""  # the key of the file's weights, where it has several
    network: str = ""  # the arch as it is built: of code, the file beside the list where it lies there
    listed: ListedService | None = None  # for a service, whose `path` is only its name

    @property
    def code(self) -> str:
        """What using the teacher would execute of somebody's, as --allow_code names it; empty for weights alone."""
        return str(self.path) if self.arch == TORCHSCRIPT else self.arch if is_code(self.arch) else ""

    @property
    def is_asked(self) -> bool:
        """Whether it is somebody's service, and not a file of one's own."""
        return self.listed is not None and self.arch != ONNX

    @property
    def class_keys(self) -> tuple[str, ...]:
        """A name for each class that is the same in every teacher of the pool."""
        return tuple(f"{self.dataset}/{name}" for name in self.known_as)

    @property
    def known_as(self) -> tuple[str, ...]:
        """The classes' own names, or their numbers where nobody named them."""
        return self.class_names or tuple(f"#{class_id:03d}" for class_id in self.class_ids)


def add_pool_flags(parser: ArgumentParser) -> None:
    """The flags that say which pool of teachers is meant, for training it and for using it."""
    group = parser.add_argument_group("teachers")
    group.add_argument("--dataset", default="cifar100", help=f"image set: {', '.join(SPECS)}, mix, or a folder")
    root = group.add_argument("--data_root", type=Path, default=DATA_ROOT, help="folder of image sets and teachers")
    cli.may_change("always", root)
    group.add_argument(
        "--pre_backbone",
        default="conv4",
        help=f"teachers' architecture: {', '.join(model_names())}, mix, torchvision/NAME or timm/NAME",
    )
    group.add_argument("--way_pretrain", type=cli.count, default=5, help="classes of a teacher")
    group.add_argument(
        "--pre_model_num", "--APInum", type=cli.count, help="teachers of each pool (pretrain: 100; otherwise: all there are)"
    )
    group.add_argument(
        "--num_class_per_task", type=cli.whole(2), help="disjoint groups of so many classes instead of random subsets (PURER)"
    )
    group.add_argument("--image_size", type=cli.pixels, help="images' height and width (default: the set's own; mix: 84)")


def pool_specs(args: Namespace) -> list[tuple[DatasetSpec, str]]:
    """The (set, architecture) pairs that --dataset and --pre_backbone stand for."""
    architectures = MIXED_ARCHITECTURES if args.pre_backbone == "mix" else (args.pre_backbone,)
    for arch in architectures:
        if arch not in model_names() and (is_code(arch) or not is_foreign(arch)):
            raise UserError(
                f"unknown backbone {arch!r}: choose from {', '.join(model_names())}; teachers also mix, torchvision/NAME, "
                f"timm/NAME{meant(arch, model_names())}"
            )
    return [(spec, arch) for spec in get_domains(args.dataset, args.data_root) for arch in architectures]


def teacher_size(args: Namespace, spec: DatasetSpec) -> int:
    """The image size of a set's teachers; in a mixture --image_size is the learner's, and teachers keep their own."""
    return spec.image_size if args.image_size is None or is_mix(args.dataset) else args.image_size


def pool_folder(args: Namespace, spec: DatasetSpec, arch: str) -> Path:
    """Where pretrain.py puts a pool and where it is looked for."""
    way = f"{args.num_class_per_task}way-disjoint" if args.num_class_per_task else f"{args.way_pretrain}way"
    size, home = teacher_size(args, spec), spec.folder if spec.root else spec.name  # two folders may have one name
    return args.data_root / "teachers" / home / arch / (way if size == spec.image_size else f"{way}-{size}px")


def find_rows(args: Namespace) -> list[TeacherRow]:
    """The teachers that a command line asks for: --teachers, else the papers' tree, else where pretrain.py puts them.

    Raises `UserError` with the command that trains a missing pool, and where there are fewer than --pre_model_num.
    """
    if args.teachers:
        found = [row for place in args.teachers for row in read_place(place, args)]
        for row in found:
            if row.code and row.code not in (args.allow_code or []):
                raise UserError(f"{row.path} asks to run code, {row.code}; if it is yours, add --allow_code {row.code}")
        return _as_many(found, args.pre_model_num, "list more in --teachers")
    rows = []
    for spec, arch in pool_specs(args):
        if args.pretrained_path_prefix:
            found = _rows_of_papers(_papers_folder(args, spec, arch), args, spec, arch)
        else:
            manifest = pool_folder(args, spec, arch) / "teachers.csv"
            if not manifest.is_file():
                raise UserError(f"no teachers in {manifest.parent}: train them with\n  {pretrain_command(args, spec, arch)}")
            found = read_manifest(manifest)
        disjoint = args.num_class_per_task is not None  # then the classes decide how many there are
        command = pretrain_command(args, spec, arch)
        rows += found[: args.pre_model_num] if disjoint else _as_many(found, args.pre_model_num, f"train the others: {command}")
    return rows


def _as_many(rows: list[TeacherRow], count: int | None, remedy: str) -> list[TeacherRow]:
    """The first `count` teachers, or all of them."""
    if count is not None and len(rows) < count:
        raise UserError(f"--pre_model_num {count}: teachers found: {len(rows)}; {remedy}, or type --pre_model_num {len(rows)}")
    return rows[:count]


def pretrain_command(args: Namespace, spec: DatasetSpec, arch: str, epochs: int | None = None) -> str:
    """The command that trains the pool that a command line asks for, of one image set and architecture, for so many epochs."""
    way = (
        f"--num_class_per_task {args.num_class_per_task}" if args.num_class_per_task else f"--way_pretrain {args.way_pretrain}"
    )
    parts = ["python pretrain.py", f"--dataset {quote(str(spec.root or spec.name))}", f"--pre_backbone {arch}", way]
    if args.pre_model_num and not args.num_class_per_task:
        parts.append(f"--pre_model_num {args.pre_model_num}")
    if epochs not in (None, spec.pretrain_epochs) and not args.num_class_per_task:
        parts.append(f"--pretrain_epochs {epochs}")
    if args.image_size and not is_mix(args.dataset):
        parts.append(f"--image_size {args.image_size}")
    if args.data_root != DATA_ROOT:
        parts.append(f"--data_root {quote(str(args.data_root))}")
    return " ".join(parts)


def as_place(text: str) -> Path | str:
    """What --teachers may name: a file or folder that is there, or the text of a URL or `module:function`."""
    return text if PLACE_OF_SERVICES.match(text) and not Path(text).exists() else Path(text)


def is_own_code(place: str) -> bool:
    """Whether a place of --teachers is a function, which reading it would run."""
    return isinstance(as_place(place), str) and not place.startswith("http")


def read_place(place: Path | str, args: Namespace) -> list[TeacherRow]:
    """A manifest, a folder with a manifest, a folder of the papers' files, or services."""
    if isinstance(place, str):
        listed = models_of(place, asking_of(args)) if place.startswith("http") else services_of(place)
        if not listed:
            raise UserError(f"--teachers {place} lists no service")
        return [_row_of_service(service) for service in listed]
    if place.is_file():
        return read_manifest(place, asking_of(args))
    if (place / "teachers.csv").is_file():
        return read_manifest(place / "teachers.csv", asking_of(args))
    if _numbered_files(place):
        known = re.split(r"[/_]", place.as_posix())
        arch = next((part for part in reversed(known) if part in model_names()), args.pre_backbone)
        name = next((part for part in reversed(known) if part in SPECS), args.dataset)
        if name is None or is_mix(name):
            raise UserError(f"--teachers {place}: of which image set? Its path names none of {', '.join(SPECS)}; add --dataset")
        return _rows_of_papers(place, args, get_domains(name, args.data_root)[0], arch)
    if place.is_dir():
        raise UserError(f"no teachers.csv and no model_<i>.pth in {place}: name your list itself, --teachers {place}/LIST.csv")
    raise UserError(f"--teachers {place} does not exist: give a teachers.csv or a folder of teachers")


def _row_of_service(listed: ListedService) -> TeacherRow:
    spec = SPECS.get(listed.dataset)
    mean, std = (spec.mean, spec.std) if spec else IMAGENET
    ids, size = tuple(range(len(listed.class_names))), listed.image_size
    return TeacherRow(Path(listed.name), SERVICE, ids, listed.class_names, size, mean, std, listed.dataset, listed=listed)


def asking_of(args: Namespace) -> Asking:
    """How a command asks services; answers are kept in the folder of runs, where it has one."""
    out = getattr(args, "out", None)
    return Asking(args.in_flight, None if out is None else AnswerStore(out))


def read_manifest(path: Path, asking: Asking = Asking()) -> list[TeacherRow]:  # noqa: B008 (it is never changed)
    """Read a manifest; teachers' paths are taken from the manifest's folder. Raises `UserError` naming line and column.

    `asking` is how its services are asked.
    """
    table = read_csv(path).rename(columns=str.lower)
    if twice := sorted(set(table.columns[table.columns.duplicated()])):
        raise UserError(f"{path} has the column {twice[0]} twice, in small letters and large ones: keep one of them")
    asked = "arch" in table.columns and bool((table["arch"] == SERVICE).all())
    if not {"class_ids", "class_names"} & {*table.columns} and not table.empty:
        found = next((column for column in table.columns if column in ("classes", "names", "labels", "class_name")), None)
        raise UserError(f"{path} has neither class_ids nor class_names" + (f": call {found} class_names" if found else ""))
    missing = [column for column in (NEEDED_OF_SERVICES if asked else NEEDED) if column not in table.columns]
    if missing:
        raise UserError(f"{path} lacks the column {missing[0]}; expected {', '.join(NEEDED)}, and class_ids or class_names")
    if table.empty:
        raise UserError(f"{path} lists no teacher")
    open_ones = {*COLUMNS, *OF_SERVICES, *MORE} - {*table.columns}
    for column in {*table.columns} - {*COLUMNS, *OF_SERVICES, *MORE}:
        if misspelt := meant(column, open_ones, alike=0.8):
            raise UserError(f"{path} has a column {column}, which nothing reads{misspelt}")
    rows = []
    for line, record in zip(table.index, table.to_dict("records"), strict=True):
        try:
            rows.append(_row_from_record({str(key): value for key, value in record.items()}, path.parent, asking))
        except (ValueError, UserError) as error:
            raise UserError(f"{path}, line {line}: {error}") from error
    _check_orders(rows, path)
    return rows


def _check_orders(rows: Sequence[TeacherRow], path: Path) -> None:
    """Raise `UserError` where one file is listed twice, with its classes in two orders."""
    first: dict[tuple[Path, str], TeacherRow] = {}
    for row in rows:
        other = first.setdefault((row.path, row.weights), row)
        if other.class_keys != row.class_keys and sorted(other.class_keys) == sorted(row.class_keys) and not row.is_asked:
            raise UserError(f"{path} lists {row.path.name} twice, with its classes in two orders: keep that of its outputs")


def _row_from_record(record: dict[str, str], folder: Path, asking: Asking) -> TeacherRow:
    def number(column: str, kind: type, text: str) -> Any:
        try:
            return int(float(text)) if kind is int and re.fullmatch(r"\d+\.0*", text) else kind(text)
        except ValueError as error:
            whole = "a whole number" if kind is int else "a number"
            raise ValueError(f"column {column}: {text!r} is not {whole}") from error

    def parts(column: str, kind: type) -> tuple:
        return tuple(number(column, kind, part.strip()) for part in record.get(column, "").split(";") if part.strip())

    for column in ("path", "arch"):
        if not record[column]:
            raise ValueError(f"column {column} is empty")
    is_service = record["arch"] == SERVICE
    spec = SPECS.get(record.get("dataset", ""))
    usual_mean, usual_std = (spec.mean, spec.std) if spec else IMAGENET
    row = TeacherRow(
        path=folder / record["path"],
        arch=record["arch"],
        class_ids=parts("class_ids", int),
        class_names=tuple(tidy_class(name, "column class_names") for name in parts("class_names", str)),
        image_size=number("image_size", int, record["image_size"]),
        mean=parts("mean", float) or (usual_mean if is_service else ()),
        std=parts("std", float) or (usual_std if is_service else ()),
        dataset=tidy(record.get("dataset", "")) or OWN,
        accuracy=number("accuracy", float, record.get("accuracy") or "nan"),
        epochs=number("epochs", int, record.get("epochs") or "0"),
        seed=number("seed", int, record.get("seed") or "0"),
        weights=record.get("weights", ""),
        network=beside(record["arch"], folder) if is_code(record["arch"]) else "",
    )
    if not row.class_ids and row.class_names:
        row = replace(row, class_ids=tuple(range(len(row.class_names))))
    check_row(row)
    if is_service:
        form = ModelForm(
            **{column: record.get(column, "") for column in OF_SERVICES},
            mean=parts("mean", float),
            std=parts("std", float),
            batch=number("batch", int, record.get("batch") or "0"),
        )
        check_url(record["path"])
        client = asking.client(record["path"], Credential(_token(record.get("token", "")), record.get("header", "")))
        return _service(row, form, client, asking.store)
    return replace(row, listed=_onnx(row)) if row.arch == ONNX else row


def _token(variable: str) -> str:
    """The environment variable that a list may have sent to a server: no other secret than those meant for that."""
    if variable and not re.fullmatch(rf"{TOKEN}(_\w+)?", variable):
        raise ValueError(f"column token: {variable!r}; expected {TOKEN} or {TOKEN}_..., the only ones a list may send anywhere")
    return variable


def _service(row: TeacherRow, form: ModelForm, client: Client, store: AnswerStore | None) -> TeacherRow:
    if not client.url.startswith(("http://", "https://")):
        raise ValueError(f"column path: {client.url!r}; expected a server's URL, http://host:port")
    if not row.class_names:
        raise ValueError("column class_names is empty: a server does not say what its classes are called")
    check_form(form)
    model = RemoteModel(client, form, len(row.class_names), row.image_size, store, row.class_names)
    listed = ListedService(model, model.place, row.class_names, row.image_size, row.dataset)
    return replace(row, path=Path(model.place), listed=listed)


def _onnx(row: TeacherRow) -> ListedService:
    if not row.path.is_file():
        raise ValueError(f"{row.path} does not exist")
    service = OnnxModel(row.path, len(row.class_ids), row.image_size, row.mean, row.std, row.class_names)
    return ListedService(service, str(row.path), row.class_names, row.image_size, row.dataset, digest_of(row.path))


def check_row(row: TeacherRow) -> None:
    """Raise `ValueError` for numbers that cannot be meant."""
    if not row.class_ids or (row.class_names and len(row.class_names) != len(row.class_ids)):
        raise ValueError(f"{len(row.class_ids)} class_ids and {len(row.class_names)} class_names; expected as many of both")
    if min(row.class_ids) < 0:
        raise ValueError(f"column class_ids: {min(row.class_ids)}; expected numbers from 0")
    if len(row.class_names) == 1 and re.search(r"[|,\t]", row.class_names[0]):
        raise ValueError(f"column class_names: {row.class_names[0]!r} is one class: classes are separated by semicolons")
    if len(set(row.class_keys)) != len(row.class_ids):
        raise ValueError("a class stands twice")
    if not 1 <= row.image_size <= cli.LARGEST_SIDE:
        raise ValueError(f"column image_size: {row.image_size}; expected pixels from 1 to {cli.LARGEST_SIDE}")
    spec = SPECS.get(row.dataset)
    if spec and not row.class_names and max(row.class_ids) >= spec.classes[0]:
        last = spec.classes[0] - 1
        raise ValueError(f"column class_ids: {max(row.class_ids)}; expected numbers of {spec.name}'s meta_train, 0 to {last}")
    for column, values in (("mean", row.mean), ("std", row.std)):
        if len(values) != 3:
            raise ValueError(f"column {column} has {len(values)} numbers; expected 3 numbers, for red, green and blue")
        if max(values) > 1:
            worst = max(values)
            advice = f": divide by 255 ({worst / 255:.4g})" if worst <= 255 else ""
            raise ValueError(f"column {column}: {worst:g} is on the scale of bytes{advice}; images here lie in [0, 1]")
        if not all(math.isfinite(value) and value >= 0 for value in values) or (column == "std" and min(values) <= 0):
            raise ValueError(f"column {column}: {values}; expected numbers {'above' if column == 'std' else 'from'} 0")
    if min(row.std) < LEAST_STD:
        raise ValueError(f"column std: {min(row.std):g}; images here lie in [0, 1]: was it divided by 255 twice?")
    if not math.isnan(row.accuracy) and not 0 <= row.accuracy <= 1:
        raise ValueError(f"column accuracy: {row.accuracy:g}; expected a share between 0 and 1 (0.848, not 84.8)")


def write_manifest(rows: Iterable[TeacherRow], path: Path) -> None:
    """Write a manifest atomically, with the teachers' paths relative to its folder."""

    def joined(values: Iterable[object]) -> str:
        return ";".join(map(str, values))

    records = [
        (
            row.path.relative_to(path.parent).as_posix(),
            row.arch,
            joined(row.class_ids),
            joined(row.class_names),
            row.image_size,
            joined(row.mean),
            joined(row.std),
            row.dataset,
            f"{row.accuracy:.4f}",
            row.epochs,
            row.seed,
        )
        for row in rows
    ]
    write_text(path, pd.DataFrame(records, columns=COLUMNS).to_csv(index=False, lineterminator="\n"))


def _papers_folder(args: Namespace, spec: DatasetSpec, arch: str) -> Path:
    prefix, way = Path(args.pretrained_path_prefix), f"{args.way_pretrain}way"
    choices = [
        prefix / spec.name / arch / "meta_train" / way / "model",  # FREE, TGR, BiDf-MKD
        prefix / f"{spec.name}_{arch}" / way / "model",  # PURER-Plus
        prefix,
    ]
    return next((folder for folder in choices if _numbered_files(folder)), choices[0])


def _numbered_files(folder: Path) -> list[Path]:
    files = [file for file in folder.glob("model_*") if file.suffix.lower() == ".pth" and NUMBER.search(file.stem)]
    return sorted(files, key=lambda file: int(NUMBER.search(file.stem).group(1)))  # type: ignore[union-attr]


def _rows_of_papers(folder: Path, args: Namespace, spec: DatasetSpec, arch: str) -> list[TeacherRow]:
    """Rows for files that carry their class ids inside, or in their number: the pool fills `class_ids` when loading."""
    files = _numbered_files(folder)
    if not files:
        raise UserError(f"no teachers.csv and no model_<i>.pth in {folder}")
    size = teacher_size(args, spec)
    return [TeacherRow(file, arch, (), (), size, spec.mean, spec.std, spec.name) for file in files]
