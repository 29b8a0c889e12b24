import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import main
import pretrain
from datasets.own import get_domains, is_own, own_set
from datasets.split import load_split
from utils.errors import UserError

Write = Callable[..., None]
Flags = Callable[..., list[str]]


@pytest.fixture
def birds(tmp_path: Path, write_images: Write) -> Path:
    """Fifteen classes, which is enough to be split."""
    for number in range(15):
        write_images(tmp_path / "birds" / f"bird {number:02d}", 4, number, (24, 40))
    return tmp_path / "birds"


def test_a_folder_is_split_by_class_and_measured(birds: Path, tmp_path: Path) -> None:
    """The same parts for the same names, wherever the folder lies; nothing is written into it."""
    spec = own_set(birds, tmp_path / "root")
    assert (spec.name, spec.classes, spec.images, spec.image_size) == ("birds", (10, 2, 3), 60, 32)
    parts = [load_split(spec, split, tmp_path / "root") for split in spec.splits]
    names = [name for part in parts for name in part.class_names]
    assert sorted(names) == sorted(f"bird {number:02d}" for number in range(15))
    pixels = torch.cat([part.images for part in parts]).double() / 255
    assert torch.allclose(torch.tensor(spec.mean).double(), pixels.mean((0, 2, 3)), atol=1e-3)
    assert torch.allclose(torch.tensor(spec.std).double(), pixels.std((0, 2, 3)), atol=1e-3)
    moved = birds.rename(tmp_path / "elsewhere")
    again = own_set(moved, tmp_path / "root")
    assert load_split(again, "meta_test", tmp_path / "root").class_names == parts[2].class_names
    assert sorted(path.name for path in moved.iterdir()) == sorted(names)


def test_parts_that_are_given_are_taken(tmp_path: Path, write_images: Write) -> None:
    for part, first in (("train", 0), ("valid", 3), ("test", 6)):
        for number in range(first, first + 3):
            write_images(tmp_path / "set" / part / f"c{number}", 2, number, (90, 100))
    spec = own_set(tmp_path / "set", tmp_path)
    assert (spec.classes, spec.image_size) == ((3, 3, 3), 84)
    assert load_split(spec, "meta_val", tmp_path).class_names == ["c3", "c4", "c5"]
    write_images(tmp_path / "set" / "test" / "c0", 2, 0, (90, 100))
    own_set.cache_clear()
    with pytest.raises(UserError, match="meta_train and meta_test both have c0"):
        own_set(tmp_path / "set", tmp_path)


def test_parts_are_known_by_their_names_however_written(tmp_path: Path, write_images: Write) -> None:
    """Beside what systems leave behind; two names for one part are one too many."""
    for number, part in enumerate(("Train", "VAL", "test", "__MACOSX", ".cache")):
        write_images(tmp_path / "set" / part / f"c{number}", 2, number)
    assert own_set(tmp_path / "set", tmp_path).classes == (1, 1, 1)
    write_images(tmp_path / "set" / "valid" / "c9", 2, 9)
    own_set.cache_clear()
    with pytest.raises(UserError, match="has VAL, valid, which are one part of a set"):
        own_set(tmp_path / "set", tmp_path)


@pytest.mark.parametrize(
    ("parts", "words"),
    [(("train", "val"), "no part called test"), (("train", "val", "test", "annotations"), "beside them annotations")],
)
def test_parts_that_are_not_whole_are_no_classes(
    parts: tuple[str, ...], words: str, tmp_path: Path, write_images: Write
) -> None:
    for number, part in enumerate(parts):
        for label in ("owl", "wren"):
            write_images(tmp_path / "birds" / part / f"{label}{number}", 3, number)
    with pytest.raises(UserError, match=words):
        own_set(tmp_path / "birds", tmp_path / "data")


def test_a_class_may_be_called_as_a_part(tmp_path: Path, write_images: Write) -> None:
    for number, label in enumerate(("train", "boat", "car")):
        write_images(tmp_path / "vehicles" / label, 3, number)
    assert own_set(tmp_path / "vehicles", tmp_path / "data").classes == (0, 0, 3)


def test_images_in_place_of_others_are_measured_anew(birds: Path, tmp_path: Path) -> None:
    before = own_set(birds, tmp_path / "root")
    for file in birds.rglob("*.png"):
        Image.new("RGB", (100, 90), (255, 255, 255)).save(file)
    own_set.cache_clear()
    after = own_set(birds, tmp_path / "root")
    assert (after.image_size, after.mean) == (84, (1.0, 1.0, 1.0))
    assert before.image_size == 32


def test_few_classes_are_meta_test_alone(tmp_path: Path, write_images: Write) -> None:
    for number in range(3):
        write_images(tmp_path / "few" / f"c{number}", 2, number)
    spec = own_set(tmp_path / "few", tmp_path)
    assert spec.classes == (0, 0, 3)
    with pytest.raises(UserError, match="no classes for meta_val: it needs 15 classes"):
        load_split(spec, "meta_val", tmp_path)


def test_what_changes_in_the_folder_changes_the_set(birds: Path, tmp_path: Path) -> None:
    before = own_set(birds, tmp_path / "root")
    Image.new("RGB", (40, 24), (255, 0, 0)).save(birds / "bird 03" / "new.png")
    own_set.cache_clear()
    after = own_set(birds, tmp_path / "root")
    assert after.images == before.images + 1
    assert after.mean != before.mean


@pytest.mark.parametrize(("name", "own"), [("cifar100", False), ("mix", False), ("./cifar100", True), ("nothing", False)])
def test_a_name_is_a_folder_where_it_has_a_slash(name: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_own(name) == own
    with pytest.raises(UserError, match=r"is missing|unknown dataset"):
        get_domains("./nothing" if own else "nothing", tmp_path)
    (tmp_path / "nothing").mkdir()
    assert is_own("nothing")


def test_teachers_a_learner_and_its_score_from_a_folder(birds: Path, flags_for: Flags, tmp_path: Path) -> None:
    own = ["--dataset", str(birds), "--data_root", str(tmp_path / "root"), "--image_size", "16"]
    pretrain.main([*own, "--way_pretrain", "3", "--pre_model_num", "2", "--pretrain_epochs", "1"])
    main.main([*flags_for("free", 1), *own, "--way_test", "2", "--judge", "--run_name", "mine"])
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert (result["dataset"], list(result["accuracy"])) == ("birds", ["birds"])
    assert result["test_classes_known_to_teachers"] == []
    assert 0 <= result["recognised"] <= 1


def test_two_folders_of_one_name_have_pools_of_their_own(birds: Path, flags_for: Flags, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / birds.name
    shutil.copytree(birds, other)
    flags = ["--data_root", str(tmp_path / "root"), "--image_size", "16", "--way_pretrain", "3"]
    pretrain.main(["--dataset", str(birds), *flags, "--pre_model_num", "1", "--pretrain_epochs", "1"])
    with pytest.raises(UserError, match="first train the teachers"):
        main.main([*flags_for("free", 1), "--dataset", str(other), *flags])
    with pytest.raises(UserError, match=r"--pre_model_num 2: teachers found: 1; train the others: python pretrain\.py"):
        main.main([*flags_for("free", 1), "--dataset", str(birds), *flags, "--way_test", "2", "--pre_model_num", "2"])


def test_a_folder_that_is_called_as_a_set_is_another_one(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "cub" / "owl", 2, 0)
    assert own_set(tmp_path / "cub", tmp_path / "root").name == "own-cub"


def test_labelled_images_that_come_later_score_a_run_without_any(
    flags_for: Flags, data_root: Path, tmp_path: Path, write_images: Write
) -> None:
    """Too few classes to be split are meta_test, and fewer than the way are a sentence."""
    zoo = data_root / "teachers" / "cifar100" / "conv4" / "3way-16px" / "teachers.csv"
    flags = ["--teachers", str(zoo), "--data_root", str(tmp_path / "empty"), "--run_name", "mine"]
    main.main([*flags_for("free", 1), *flags])
    run = tmp_path / "runs" / "mine"
    assert not json.loads((run / "result.json").read_text())["evaluated"]
    for number in range(2):
        write_images(tmp_path / "later" / f"c{number}", 6, number)
    with pytest.raises(UserError, match="2 classes"):
        main.main(["--evaluate", str(run), "--testdataset", str(tmp_path / "later")])
    own_set.cache_clear()
    write_images(tmp_path / "later" / "c2", 6, 9)
    main.main(["--evaluate", str(run), "--testdataset", str(tmp_path / "later")])
    result = json.loads((run / "evaluate-3w1s-later.json").read_text())
    assert 0 <= result["accuracy"]["later"]["mean"] <= 1
    assert "one frozen teacher (mean)" in result["yardsticks"]


def test_a_class_that_begins_with_a_blank_and_joined_letters(tmp_path: Path, write_images: Write) -> None:
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    for number, name in enumerate((" owl", joined)):
        write_images(tmp_path / "set" / name, 2, number)
    spec = own_set(tmp_path / "set", tmp_path / "root")
    assert load_split(spec, "meta_test", tmp_path / "root").class_names == [
        "owl",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    ]


def test_images_of_another_day_and_the_same_time_are_measured_anew(tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "set" / "owl", 2, 0, suffix="bmp")
    for file in (tmp_path / "set" / "owl").iterdir():
        os.utime(file, (10**9, 10**9))
    before = own_set(tmp_path / "set", tmp_path / "root").mean
    for file in (tmp_path / "set" / "owl").iterdir():
        Image.new("RGB", Image.open(file).size, (200, 0, 0)).save(file)
        os.utime(file, (10**9, 10**9))
    own_set.cache_clear()
    assert own_set(tmp_path / "set", tmp_path / "root").mean != before


@pytest.mark.parametrize("parts", [("training", "Testing"), ("trn", "dev", "tst"), ("Train_set", "Test_set")])
def test_parts_by_other_names(parts: tuple[str, ...], tmp_path: Path, write_images: Write) -> None:
    for number, part in enumerate(parts):
        write_images(tmp_path / "set" / part / f"c{number}", 2, number, (20, 20))
    assert sum(own_set(tmp_path / "set", tmp_path).classes) == len(parts)


def test_classes_that_look_alike_are_noted(tmp_path: Path, write_images: Write, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(("Owl", "owl", "kite")):
        write_images(tmp_path / "set" / name, 2, number, (20, 20))
    own_set(tmp_path / "set", tmp_path)
    assert "note: the classes Owl and owl look alike" in capsys.readouterr().err
