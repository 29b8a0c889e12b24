import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
from PIL import Image

from datasets.registry import SPECS
from utils.errors import UserError
from utils.files import write_text
from utils.vision import import_torchvision
from write_file import (
    write_cifar100_filelist,
    write_CUB_filelist,
    write_flower_filelist,
    write_miniimagenet_filelist,
    write_whole_filelist,
)
from write_file.filelist import lay_out
from write_file.write_glyphs_filelist import LETTERS, draw, faces, shape


def read(root: Path, name: str, split: str) -> pd.DataFrame:
    """The list of a few-shot set by name, or of a folder."""
    folder = SPECS[name].folder if name in SPECS else name
    return pd.read_csv(root / folder / "split" / f"{split}.csv", dtype=str)


def fails(script, root: Path, *more: str) -> str:
    with pytest.raises(UserError) as error:
        script.main(["--data_root", str(root), *more])
    return str(error.value)


@pytest.mark.parametrize("name", list(SPECS))
def test_lists_are_sorted_and_relative(data_root: Path, name: str) -> None:
    seen = set()
    for split in ("meta_train", "meta_val", "meta_test"):
        table = read(data_root, name, split)
        assert list(table.columns) == ["filename", "label"]
        rows = list(zip(table.label, table.filename, strict=True))
        assert rows == sorted(rows)
        assert all((data_root / file).is_file() for file in table.filename)
        assert not seen & set(table.label)
        seen |= set(table.label)


def test_the_cub_rule(data_root: Path) -> None:
    for split, wanted in (("meta_train", [0, 2, 4]), ("meta_val", [1, 5, 9]), ("meta_test", [3, 7, 11])):
        labels = sorted(set(read(data_root, "cub", split).label))
        assert [int(label[:3]) for label in labels[:3]] == wanted


def test_the_flower_split(data_root: Path) -> None:
    assert set(read(data_root, "flower", "meta_val").label) == {"010", "016", "017", "023", "026"}
    assert set(read(data_root, "flower", "meta_test").label) == {"005", "009", "015", "019", "035"}
    assert 102 - len(write_flower_filelist.META_VAL) - len(write_flower_filelist.META_TEST) == 71


def test_the_official_cifar_fs_split() -> None:
    assert len(write_cifar100_filelist.META_VAL) == 16
    assert len(write_cifar100_filelist.META_TEST) == 20
    assert write_cifar100_filelist.split_of("apple") == "meta_train"
    assert write_cifar100_filelist.split_of("otter") == "meta_val"
    assert write_cifar100_filelist.split_of("worm") == "meta_test"


def test_the_papers_typo_is_understood(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "cifar100", tmp_path / "cifar100")
    for split in ("train", "val", "test"):
        (tmp_path / "cifar100" / f"meta_{split}").rename(tmp_path / "cifar100" / f"mete_{split}")
    write_cifar100_filelist.main(["--data_root", str(tmp_path)])
    assert read(tmp_path, "cifar100", "meta_val").filename[0].startswith("cifar100/mete_val/")


def test_cifar_arrays_are_laid_out(tmp_path: Path) -> None:
    images = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
    split_of = write_cifar100_filelist.split_of
    lay_out(images, [0, 1, 0], ["apple", "worm"], "train", lambda label: tmp_path / split_of(label) / label)
    with Image.open(tmp_path / "meta_train" / "apple" / "train_00002.png") as image:
        assert np.array_equal(np.asarray(image), images[2])
    assert (tmp_path / "meta_test" / "worm" / "train_00001.png").is_file()


def test_ravi_and_larochelles_lists(data_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Miniimagenet"
    (folder / "images").mkdir(parents=True)
    for split in ("train", "val", "test"):
        table = read(data_root, "miniimagenet", f"meta_{split}")
        names = []
        for number, file in enumerate(table.filename):
            names.append(f"{split}{number:04d}.png")
            shutil.copy(data_root / file, folder / "images" / names[-1])
        write_text(folder / f"{split}.csv", pd.DataFrame({"filename": names, "label": table.label}).to_csv(index=False))
    write_miniimagenet_filelist.main(["--data_root", str(tmp_path)])
    assert list(read(tmp_path, "miniimagenet", "meta_val").label) == list(read(data_root, "miniimagenet", "meta_val").label)


def test_official_archives(data_root: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(data_root / "CUB_200_2011" / "images", "CUB_200_2011/images")
    write_CUB_filelist.main(["--data_root", str(tmp_path)])
    assert read(tmp_path, "cub", "meta_test").equals(read(data_root, "cub", "meta_test"))
    (tmp_path / "flower").mkdir()
    shutil.copy(data_root / "flower" / "imagelabels.mat", tmp_path / "flower")
    with tarfile.open(tmp_path / "flower" / "102flowers.tgz", "w:gz") as tar:
        tar.add(data_root / "flower" / "jpg", "jpg")
    write_flower_filelist.main(["--data_root", str(tmp_path)])
    assert read(tmp_path, "flower", "meta_test").equals(read(data_root, "flower", "meta_test"))


def test_hostile_and_broken_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "evil.txt"
    secret.write_text("evil")
    root = tmp_path / "data"
    root.mkdir()
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(secret, "../../escaped.txt")
    assert "CUB_200_2011.tgz" in fails(write_CUB_filelist, root)
    assert not (tmp_path.parent / "escaped.txt").exists()
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz") as tar:  # a link that leads out, and a file behind it
        link = tarfile.TarInfo("CUB_200_2011/images")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        tar.add(secret, "CUB_200_2011/images/escaped.txt")
    fails(write_CUB_filelist, root)
    assert not (tmp_path / "escaped.txt").exists()
    shutil.rmtree(root / "CUB_200_2011")
    (root / "CUB_200_2011.tgz").write_bytes(b"not an archive")
    assert "download it again" in fails(write_CUB_filelist, root)
    assert not (root / "CUB_200_2011" / "images").exists()


def test_bad_folders_are_named(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for script in (write_cifar100_filelist, write_miniimagenet_filelist, write_CUB_filelist, write_flower_filelist):
        assert "missing" in fails(script, tmp_path)
    shutil.copytree(data_root / "cifar100", tmp_path / "cifar100")
    folder = tmp_path / "cifar100" / "meta_val" / "meta_val_1"
    broken = sorted(folder.iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:80])
    assert str(broken) in fails(write_cifar100_filelist, tmp_path)
    shutil.rmtree(folder)
    folder.mkdir()
    assert "'meta_val_1'" in fails(write_cifar100_filelist, tmp_path)


def test_a_label_file_that_is_none(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data_root / "flower", tmp_path / "flower")
    labels = tmp_path / "flower" / "imagelabels.mat"
    for wrong in ({"other": [1]}, {"labels": [1.5, 2.0]}, {"labels": [1, 103]}, {"labels": ["a", "b"]}, {"labels": [1, 2]}):
        scipy.io.savemat(labels, wrong)  # the last ones are fewer than there are images
        assert "imagelabels.mat" in fails(write_flower_filelist, tmp_path)
    labels.write_bytes(b"")
    assert "imagelabels.mat" in fails(write_flower_filelist, tmp_path)


def outline(letter: str, face: Path) -> np.ndarray:
    """The letter's shape, whatever its size: blurred, centred, unit length."""
    mask = shape(letter, face, 96)
    side = max(mask.size)
    square = Image.new("L", (side, side))
    square.paste(mask, ((side - mask.width) // 2, (side - mask.height) // 2))
    small = np.asarray(square.resize((16, 16), Image.Resampling.BOX), dtype=float).ravel()
    small -= small.mean()
    return small / np.linalg.norm(small)


def test_no_two_letters_look_alike() -> None:
    """Also across scripts: Latin A, Greek Alpha and Cyrillic A would be one shape with three names."""
    letters = "".join(LETTERS.values())
    assert [len(LETTERS[split]) for split in LETTERS] == list(SPECS["glyphs"].classes)
    assert len(set(letters)) == len(letters)
    outlines = {letter: outline(letter, faces(letter)[0]) for letter in letters + "AΑ"}
    assert float(outlines["A"] @ outlines["Α"]) > 0.99  # the measure sees look-alikes
    for index, one in enumerate(letters):
        for other in letters[:index]:
            assert float(outlines[one] @ outlines[other]) < 0.9, f"{one} looks like {other}"


def test_every_face_really_has_its_letters() -> None:
    """A missing letter would be drawn as the face's box for unknown characters."""
    for letter in "".join(LETTERS.values()):
        for face in faces(letter):
            unknown = shape("\U0010fffd", face, 40)
            drawn = shape(letter, face, 40)
            assert drawn.size != unknown.size or np.asarray(drawn).tobytes() != np.asarray(unknown).tobytes()


def test_glyphs_depend_on_the_seed_alone() -> None:
    first = np.asarray(draw("A", 3, seed=0))
    assert np.array_equal(first, np.asarray(draw("A", 3, seed=0)))
    assert not np.array_equal(first, np.asarray(draw("A", 3, seed=1)))
    assert not np.array_equal(first, np.asarray(draw("A", 4, seed=0)))
    assert first.shape == (32, 32, 3)


def test_the_tree_is_made_from_ordinary_cifar_100(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Reader:
        """What torchvision's reader shows of the files."""

        classes = ("apple", "otter", "worm")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data = np.full((6 if train else 3, 32, 32, 3), 7, dtype=np.uint8)
            self.targets = [number % 3 for number in range(len(self.data))]

    import_torchvision()
    monkeypatch.setattr("torchvision.datasets.CIFAR100", Reader)
    write_cifar100_filelist.main(["--data_root", str(tmp_path), "--download"])
    assert list(read(tmp_path, "cifar100", "meta_val").filename) == [
        "cifar100/meta_val/otter/test_00001.png",
        "cifar100/meta_val/otter/train_00001.png",
        "cifar100/meta_val/otter/train_00004.png",
    ]
    assert "(published: 64)" in capsys.readouterr().out
    assert "is there already" in fails(write_cifar100_filelist, tmp_path, "--download")


def test_whole_sets_from_folders(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(data_root / "cifar10", tmp_path / "cifar10", ignore=shutil.ignore_patterns("split"))
    write_whole_filelist.main(["--data_root", str(tmp_path), "--dataset", "cifar10"])
    assert read(tmp_path, "cifar10", "test").filename[0] == "cifar10/test/class_0/000.png"
    assert "(published: 10)" in capsys.readouterr().out
    assert "cifar100_whole/train is missing" in fails(write_whole_filelist, tmp_path, "--dataset", "cifar100")
    assert "--download knows" in fails(write_whole_filelist, tmp_path, "--dataset", "imagenet", "--download")


def test_a_whole_set_of_few_shot_images(data_root: Path, tmp_path: Path) -> None:
    shutil.copytree(data_root / "cifar100", tmp_path / "cifar100")
    write_whole_filelist.main(["--data_root", str(tmp_path), "--dataset", "cifar100", "--from_few_shot"])
    train, test = (read(tmp_path, "cifar100_whole", split) for split in ("train", "test"))
    assert set(train.label) == set(test.label)
    assert len(set(train.label)) == 7 + 5 + 6
    assert not set(train.filename) & set(test.filename)
    assert (train.groupby("label").size() == 6).all()  # five sixths of eight images
    names = train.merge(test, on="label")
    assert (names.filename_x.str.rsplit("/", n=1).str[1] < names.filename_y.str.rsplit("/", n=1).str[1]).all()


def coloured(folder: Path, number: int = 2) -> None:
    folder.mkdir(parents=True)
    for image in range(number):
        Image.new("RGB", (16, 16), (image, 0, 0)).save(folder / f"{image}.png")


def test_train_and_test_of_a_whole_set_have_the_same_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, names in (("train", ("Airplane", "bird")), ("test", ("airplane", "bird"))):
        for name in names:
            coloured(tmp_path / "cifar10" / split / name)
    message = fails(write_whole_filelist, tmp_path, "--dataset", "cifar10")
    assert "cifar10/train alone has Airplane; cifar10/test alone has airplane" in message
    assert not (tmp_path / "cifar10" / "split").exists()


def test_no_class_stands_in_two_splits_of_a_few_shot_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, names in (("meta_train", "ab"), ("meta_val", "cd"), ("meta_test", "eb")):
        for name in names:
            coloured(tmp_path / "cifar100" / split / name)
    assert "meta_train and meta_test both have b" in fails(write_cifar100_filelist, tmp_path)


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"filename,label,\na.png,NA,\nb.png,nan,\n", ["NA", "nan"]),
        ("filename,label\na.png,owl\nb.png,owl \n".encode("utf-16"), ["owl", "owl"]),
        (b"", None),
        (b"filename,label\n", None),
        (b"filename,label\na.png,owl,7\n", None),
    ],
)
def test_no_list_is_written_empty_or_with_labels_lost(
    content: bytes, labels: list[str] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Miniimagenet"
    coloured(folder / "images")
    for number in range(2):
        (folder / "images" / f"{number}.png").rename(folder / "images" / f"{'ab'[number]}.png")
    for split in ("train", "val"):
        (folder / f"{split}.csv").write_text(f"filename,label\na.png,{split}\n")
    (folder / "test.csv").write_bytes(content)
    if labels is None:
        assert "test" in fails(write_miniimagenet_filelist, tmp_path)
        assert not (folder / "split").exists()
        return
    write_miniimagenet_filelist.main(["--data_root", str(tmp_path)])
    table = pd.read_csv(folder / "split" / "meta_test.csv", dtype=str, keep_default_na=False)
    assert list(table.label) == labels
