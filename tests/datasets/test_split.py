import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.image_files import decode
from datasets.own import get_domains
from datasets.registry import SPECS, get_spec
from datasets.split import csv_path, load_split, read_list
from utils.errors import UserError

CIFAR = SPECS["cifar100"]


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    """A copy of one image set that a test may damage."""
    shutil.copytree(data_root / "cifar100", tmp_path / "cifar100")
    return tmp_path


def test_a_split_is_one_tensor_in_the_order_of_names(root: Path) -> None:
    split = load_split(CIFAR, "meta_test", root)
    assert split.images.shape == (48, 3, 32, 32)
    assert split.images.dtype == torch.uint8
    assert split.class_names == sorted(split.class_names)
    assert split.labels.tolist() == [label for label in range(6) for _ in range(8)]
    table = read_list(CIFAR, "meta_test", root)
    assert torch.equal(split.images[11], torch.from_numpy(decode(root / table.filename[11], 32).copy()))


def test_the_cache_follows_the_files(root: Path) -> None:
    before = load_split(CIFAR, "meta_test", root)
    file = root / read_list(CIFAR, "meta_test", root).filename[0]
    Image.new("RGB", (40, 40), (255, 0, 0)).save(file)
    os.utime(file, ns=(1, 1))
    after = load_split(CIFAR, "meta_test", root)
    assert after.images[0].unique().tolist() == [0, 255]
    assert torch.equal(before.images[1:], after.images[1:])
    assert torch.equal(load_split(CIFAR, "meta_test", root).images, after.images)


def test_a_damaged_cache_is_made_anew(root: Path) -> None:
    lists = root / "cifar100" / "split"
    for left in lists.glob(".meta_test*.pt"):  # by other tests, in the tree that was copied
        left.unlink()
    before = load_split(CIFAR, "meta_test", root)
    caches = list(lists.glob(".meta_test*.pt"))
    assert len(caches) == 1
    caches[0].write_bytes(b"damaged")
    assert torch.equal(load_split(CIFAR, "meta_test", root).images, before.images)


def test_folders_that_change_their_names_change_the_labels(root: Path) -> None:
    """Nothing about the files themselves changes, neither name nor size nor time."""
    split = root / "cifar100" / "meta_test"
    names = sorted(folder.name for folder in split.iterdir())[:2]
    for folder, colour in zip(names, (0, 200), strict=True):
        for file in (split / folder).iterdir():
            Image.new("RGB", (32, 32), (colour, 0, 0)).save(file, "bmp")
            os.utime(file, (10**9, 10**9))
    assert load_split(CIFAR, "meta_test", root).images[[0, 8], 0, 0, 0].tolist() == [0, 200]
    for before, after in ((names[0], "x"), (names[1], names[0]), ("x", names[1])):
        (split / before).rename(split / after)
    found = load_split(CIFAR, "meta_test", root)
    assert found.images[[0, 8], 0, 0, 0].tolist() == [200, 0]


def test_a_moved_tree_still_works(root: Path, tmp_path: Path) -> None:
    before = load_split(CIFAR, "meta_val", root)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.move(root / "cifar100", moved / "cifar100")
    assert torch.equal(load_split(CIFAR, "meta_val", moved).images, before.images)


def test_bad_lists_are_named(root: Path) -> None:
    path = csv_path(CIFAR, "meta_test", root)
    lines = path.read_text().splitlines()
    cases = {
        "columns": ["file,label", *lines[1:]],
        "lists no image": lines[:1],
        "leaves": [lines[0], "../../etc/passwd,secret"],
        "does not exist": [lines[0], "cifar100/gone.png,gone"],
    }
    for message, content in cases.items():
        path.write_text("\n".join(content) + "\n")
        with pytest.raises(UserError, match=message):
            load_split(CIFAR, "meta_test", root)
    path.unlink()
    with pytest.raises(UserError, match=r"write_cifar100_filelist\.py"):
        load_split(CIFAR, "meta_test", root)


def test_a_truncated_image_is_named(root: Path) -> None:
    file = root / read_list(CIFAR, "meta_test", root).filename[5]
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=file.name):
        load_split(CIFAR, "meta_test", root)


def test_registry() -> None:
    assert [spec.name for spec in get_domains("mix", Path())] == ["cifar100", "miniimagenet", "cub"]
    assert get_spec("cub").pretrain_epochs == 100
    with pytest.raises(UserError, match="choose from cifar100"):
        get_spec("imagenet")


def test_imagenets_photographs_are_cut_as_torchvisions_teachers_expect(root: Path) -> None:
    """Of a picture twice as wide as high, neither the ends nor an eighth of its height are seen, and nothing is squashed."""
    spec = replace(get_spec("imagenet", "classification"), image_size=28)
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :18] = picture[:, 46:] = picture[:2] = picture[30:] = 255  # white: what resizing to 32 and cutting 28 drops
    (root / "imagenet" / "split").mkdir(parents=True)
    Image.fromarray(picture).save(root / "imagenet" / "wide.png")
    csv_path(spec, "test", root).write_text("filename,label\nimagenet/wide.png,dog\n")
    assert load_split(spec, "test", root).images.max() == 0
    assert load_split(replace(spec, center_crop=None), "test", root).images.max() == 255


def test_an_image_that_stands_there_twice_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_list(CIFAR, "meta_test", root)
    one, other = root / table.filename[0], root / table.filename[len(table) - 1]
    shutil.copy(one, other)
    capsys.readouterr()
    load_split(CIFAR, "meta_test", root)
    said = capsys.readouterr().err
    assert f"1 of 48 images stand there again, 1 of them under another class; first {one} and {other}" in said
    load_split(CIFAR, "meta_test", root)
    assert not capsys.readouterr().err  # once, when they are read


def test_a_list_has_every_image_once(root: Path) -> None:
    path = csv_path(CIFAR, "meta_test", root)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(UserError, match=r"lists .* twice: an image would be example and question"):
        load_split(CIFAR, "meta_test", root)
