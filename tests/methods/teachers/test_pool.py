import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import pretrain
from datasets.registry import SPECS
from methods.teachers import __main__ as command
from methods.teachers.manifest import COLUMNS, find_rows, read_manifest, write_manifest
from methods.teachers.pool import NEVER_TRAINED, TeacherPool
from methods.teachers.teacher import Teacher
from models import create_model
from utils import checkpoint
from utils.errors import UserError
from utils.images import ImageForm, to_float

pytestmark = pytest.mark.usefixtures("float64")
DEVICE = torch.device("cpu")


def pool_args(root: Path, **changes: object) -> argparse.Namespace:
    flags = ["--data_root", str(root), "--way_pretrain", "3", "--image_size", "16"]
    extra = {"teachers": None, "pretrained_path_prefix": None, "class_order": None}
    return argparse.Namespace(**(vars(pretrain.parse_args(flags)) | extra | changes))


def test_a_pool_shares_classes_between_teachers(data_root: Path) -> None:
    rows = find_rows(pool_args(data_root))
    pool = TeacherPool(rows, DEVICE)
    assert len(pool) == 2
    for teacher_id, row in enumerate(rows):
        teacher = pool[teacher_id]
        assert [pool.class_names[i] for i in teacher.class_ids] == [f"cifar100/{name}" for name in row.class_names]
        assert teacher(torch.rand(2, 3, 40, 40)).shape == (2, 3)
        assert teacher.features(torch.rand(2, 3, 16, 16)).shape == (2, 32)
        assert not teacher.network.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert pool.class_names == sorted(set(pool.class_names))
    assert sorted(id(teacher) for teacher in pool.sample(9)) == sorted(id(pool[i]) for i in range(2))


def test_the_answering_twin_answers_alike_and_is_no_part_of_the_teacher(data_root: Path) -> None:
    teacher = TeacherPool(find_rows(pool_args(data_root)), DEVICE)[1].narrowed(2)
    names, images = list(teacher.state_dict()), torch.rand(4, 3, 20, 20)
    twin = teacher.answering
    assert twin is not teacher
    assert twin is teacher.answering
    assert twin.class_ids == teacher.class_ids
    assert torch.allclose(twin(images), teacher(images), rtol=1e-9, atol=1e-12)
    assert list(teacher.state_dict()) == names


def test_labels_keep_their_order(data_root: Path, tmp_path: Path) -> None:
    """A teacher must be right about the class names that its manifest gives it: colours here, easily learnt."""
    from datasets.registry import SPECS
    from datasets.split import load_split

    shutil.copytree(data_root / "cifar100", tmp_path / "cifar100")
    flags = ["--data_root", str(tmp_path), "--way_pretrain", "3", "--image_size", "16", "--pre_model_num", "3"]
    pretrain.main([*flags, "--pretrain_epochs", "8"])
    split = load_split(SPECS["cifar100"], "meta_train", tmp_path, 16)
    pool = TeacherPool(find_rows(pool_args(tmp_path)), DEVICE)
    right = []
    for teacher_id, row in enumerate(pool.rows):
        for output, name in enumerate(row.class_names):
            images = to_float(split.images[split.labels == split.class_names.index(name)])
            right.append(float((pool[teacher_id](images).argmax(1) == output).float().mean()))
    assert sum(right) / len(right) > 0.8


def test_letters_are_not_mirrored_whoever_knows_them(data_root: Path) -> None:
    photographs, letters = SPECS["cifar100"], SPECS["glyphs"]
    pool = TeacherPool(find_rows(pool_args(data_root)), DEVICE)
    nobody = TeacherPool([], DEVICE)
    assert all(anybody.mirrors([photographs]) for anybody in (pool, nobody))
    assert not any(anybody.mirrors([photographs, letters]) for anybody in (pool, nobody))
    knows_letters = TeacherPool([replace(row, dataset="glyphs") for row in pool.rows], DEVICE)
    assert not knows_letters.mirrors([photographs])


def test_loading_a_teacher_draws_no_random_number(data_root: Path) -> None:
    """A resumed run loads its teachers again; that must not shift what it draws."""
    pool = TeacherPool(find_rows(pool_args(data_root)), DEVICE)
    before = torch.get_rng_state()
    _ = pool[0]
    assert torch.equal(before, torch.get_rng_state())


def test_disjoint_and_random_pools_have_their_own_folders(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python pretrain.py --dataset cifar100 --pre_backbone conv4 --num_class_per_task 2"):
        find_rows(pool_args(data_root, num_class_per_task=2))
    with pytest.raises(UserError, match=r"--way_pretrain 4 --pre_model_num 7"):
        find_rows(pool_args(tmp_path, way_pretrain=4, pre_model_num=7))


def test_manifests_survive_writing(data_root: Path, tmp_path: Path) -> None:
    rows = [row.__class__(**(vars(row) | {"path": tmp_path / row.path.name})) for row in find_rows(pool_args(data_root))]
    write_manifest(rows, tmp_path / "teachers.csv")
    again = read_manifest(tmp_path / "teachers.csv")
    assert [vars(row) | {"accuracy": 0} for row in again] == [vars(row) | {"accuracy": 0} for row in rows]


def in_two_orders(table: pd.DataFrame) -> pd.DataFrame:
    ids, names = (
        table[column].iloc[:1].str.split(";").map(lambda parts: ";".join(parts[::-1]))
        for column in ("class_ids", "class_names")
    )
    return pd.concat([table, table.head(1).assign(class_ids=ids, class_names=names)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="mean"), "lacks the column mean"),
        (lambda table: table.head(0), "lists no teacher"),
        (lambda table: table.assign(class_ids="1;2"), "line 2: 2 class_ids and 3 class_names"),
        (lambda table: table.assign(image_size="big"), "line 2"),
        (lambda table: table.assign(Mean=table["mean"]), "has the column mean twice"),
        (lambda table: table.assign(std="1e-30;1e-30;1e-30"), "column std: 1e-30.*divided by 255 twice"),
        (lambda table: table.assign(class_names="", class_ids="1;2;64"), "column class_ids: 64; expected .* 0 to 63"),
        (in_two_orders, "twice, with its classes in two orders"),
        (
            lambda table: table.drop(columns=["class_ids", "class_names"]).assign(classes="a;b;c"),
            "neither .*: call classes class_names",
        ),
        (lambda table: table.assign(class_ids="0", class_names="a|b|c"), "is one class: classes are separated by semicolons"),
    ],
)
def test_bad_manifests_name_line_and_column(data_root: Path, tmp_path: Path, change, message: str) -> None:
    source = find_rows(pool_args(data_root))[0].path.parent / "teachers.csv"
    change(pd.read_csv(source, dtype=str)).to_csv(tmp_path / "teachers.csv", index=False)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path / "teachers.csv")


def test_teachers_that_are_not_what_the_manifest_says(data_root: Path, tmp_path: Path) -> None:
    row = find_rows(pool_args(data_root))[0]
    changed = [
        ({"class_ids": (0, 1, 2, 3), "class_names": ()}, "head"),
        ({"arch": "resnet10"}, "does not fit"),
        ({"arch": "conv9"}, "unknown backbone"),
        ({"path": tmp_path / "gone.pth"}, "does not exist"),
    ]
    for change, message in changed:
        with pytest.raises(UserError, match=message):
            TeacherPool([row.__class__(**(vars(row) | change))], DEVICE)[0]


def test_the_papers_trees(tmp_path: Path, papers_conv4, capsys: pytest.CaptureFixture[str]) -> None:
    network = create_model("conv4", 3, 32).eval()
    state = papers_conv4(network.state_dict())
    folders = {
        "free": tmp_path / "free" / "cifar100" / "conv4" / "meta_train" / "3way" / "model",
        "plus": tmp_path / "plus" / "cifar100_conv4" / "3way" / "model",
        "purer": tmp_path / "purer",
    }
    checkpoint.save({"teacher": state, "specific": [40, 2, 11]}, folders["free"] / "model_specific_0.pth")
    checkpoint.save(
        {"teacher": state, "specific": [40, 2, 11], "acc": torch.tensor(70.0)}, folders["plus"] / "model_specific_acc_0.pth"
    )
    for number in (0, 21):
        checkpoint.save(state, folders["purer"] / f"model_{number}.pth")
    x = torch.rand(2, 3, 32, 32)
    for kind in folders:
        args = pool_args(tmp_path, pretrained_path_prefix=str(tmp_path / kind), image_size=None)
        pool = TeacherPool(find_rows(args), DEVICE)
        assert "unsorted order" in capsys.readouterr().err
        wanted = (
            ("cifar100/#000", "cifar100/#001", "cifar100/#002")
            if kind == "purer"
            else ("cifar100/#040", "cifar100/#002", "cifar100/#011")
        )
        assert pool.rows[0].class_keys == wanted
        assert torch.allclose(pool[0](x), network(pool[0].form.prepare(x)), rtol=1e-9, atol=1e-12)
    assert pool.rows[1].class_ids == (63,)  # 64 classes: two outputs of the last teacher are spare
    assert pool[1](x).shape == (2, 1)
    order = tmp_path / "order.txt"
    order.write_text("\n".join(f"name{i}" for i in range(64)))
    args = pool_args(tmp_path, teachers=[folders["free"]], image_size=None)
    named = TeacherPool(find_rows(args), DEVICE, class_order=order)
    assert named.rows[0].class_names == ("name40", "name2", "name11")
    order.write_text("\ufeff" + "\n".join(f"{i} polar bear {i}" for i in range(64)))
    assert TeacherPool(find_rows(args), DEVICE, class_order=order).rows[0].class_names[1] == "polar bear 2"
    for content, words in (("a\n" * 64, "a stands there twice"), (b"\xff\xe9\n", "is no text in UTF-8")):
        order.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(UserError, match=words):
            TeacherPool(find_rows(args), DEVICE, class_order=order)
    for specific in ([40, 2, 11, 3], [40, 2, 2], []):
        checkpoint.save({"teacher": state, "specific": specific}, folders["free"] / "model_specific_0.pth")
        with pytest.raises(UserError, match=r"is said to know .* and answers for 3"):
            TeacherPool(find_rows(args), DEVICE)
    of_pets = [replace(row, dataset="pets", class_ids=()) for row in find_rows(args)]
    with pytest.raises(UserError, match=r"image set of your own in a teachers\.csv"):
        TeacherPool(of_pets, DEVICE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no teachers\.csv and no model_<i>\.pth in .*: name your list itself"):
        find_rows(pool_args(tmp_path, teachers=[tmp_path / "empty"], image_size=None))
    assert COLUMNS[0] == "path"


def test_a_pool_of_teachers_in_memory_is_held_to_what_a_list_is() -> None:
    network, form = create_model("conv4", 3, 16), ImageForm(16, (0.5,) * 3, (0.25,) * 3)
    pool = TeacherPool.of([Teacher(network, names, form) for names in (("a", "b ", "c"), ("b", "d", "a"))])
    assert pool.class_names == ["own/a", "own/b", "own/c", "own/d"]
    for names, mean, words in (
        (("a", "b", "a "), 0.5, "teacher 0: a stands there twice"),
        (("a", "b", "c"), 127.5, "scale of bytes"),
    ):
        with pytest.raises(UserError, match=words):
            TeacherPool.of([Teacher(network, names, ImageForm(16, (mean,) * 3, (0.25,) * 3))])


def test_what_is_kept_of_a_teacher_is_that_of_its_weights_and_its_code(tmp_path: Path) -> None:
    """Another column `weights`, or another program in the file that builds it, and it is another teacher."""
    state = {"0.weight": torch.randn(3, 3, 1, 1), "3.weight": torch.randn(3, 3), "3.bias": torch.zeros(3)}
    checkpoint.save({"raw": state, "ema": {name: 2 * value for name, value in state.items()}}, tmp_path / "a.pth")
    program = "from torch import nn\ndef make(n):\n    return nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.{}(), "
    (tmp_path / "mine.py").write_text(program.format("ReLU") + "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, n))\n")
    found = []
    for weights, activation in (("raw", "ReLU"), ("ema", "ReLU"), ("raw", "Tanh")):
        source = program.format(activation) + "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, n))\n"
        (tmp_path / "mine.py").write_text(source)
        header = "path,arch,class_names,image_size,mean,std,weights"
        (tmp_path / "zoo.csv").write_text(f"{header}\na.pth,mine:make,a;b;c,16,0.5;0.5;0.5,0.2;0.2;0.2,{weights}\n")
        found.append(TeacherPool(read_manifest(tmp_path / "zoo.csv"), DEVICE).fingerprint_of(0))
    assert len(set(found)) == 3


@pytest.mark.parametrize(("place", "doubtful"), [("resnet10/3way", True), ("conv4/3way-16px", False)])
def test_a_network_that_was_never_trained_is_told(
    data_root: Path, capsys: pytest.CaptureFixture[str], place: str, doubtful: bool
) -> None:
    """Running means of exactly 0 give it away."""
    listed = data_root / "teachers/cifar100" / place / "teachers.csv"
    assert (NEVER_TRAINED in TeacherPool(read_manifest(listed), torch.device("cpu")).finding(0).notes) == doubtful
    command.main(["check", str(listed)])
    assert (f"doubtful: {NEVER_TRAINED}" in capsys.readouterr().out) == doubtful


def test_colours_change_only_where_every_set_allows_it() -> None:
    networks = [Teacher(create_model("conv4", 2, 16), ["a", "b"], ImageForm(16, (0.5,) * 3, (0.2,) * 3)) for _ in range(2)]
    pool = TeacherPool.of(networks, "glyphs")
    assert (pool.augmentation.flip, pool.augmentation.recolour) == (False, True)
    mixed = TeacherPool.of(networks, "glyphs")
    mixed.rows[1] = replace(mixed.rows[1], dataset="birds")
    assert (mixed.augmentation.flip, mixed.augmentation.recolour) == (False, False)


def test_a_column_that_was_misspelt_is_said(tmp_path: Path) -> None:
    """A column of one's own is not read, and no mistake."""
    head, row = "path,arch,class_names,image_size,mean,std", "a.pth,conv4,a;b,16.0,.5;.5;.5,.2;.2;.2"
    (tmp_path / "z.csv").write_text(f"{head},weigths\n{row},ema\n")
    with pytest.raises(UserError, match=r"a column weigths, which nothing reads \(did you mean weights\?\)"):
        read_manifest(tmp_path / "z.csv")
    (tmp_path / "z.csv").write_text(f"{head},model_name,epochs\n{row},mine,50.0\n")
    assert read_manifest(tmp_path / "z.csv")[0].epochs == 50
