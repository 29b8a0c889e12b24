import shutil
from pathlib import Path

import pytest
import torch

import pretrain
from datasets.registry import SPECS
from methods.teachers.manifest import read_manifest
from methods.teachers.pretraining import Recipe, make_optimizer, recipe_from, train_teacher
from models import create_model
from utils import checkpoint
from utils.errors import UserError


@pytest.fixture
def root(data_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(data_root / "cifar100", tmp_path / "cifar100")
    return tmp_path


FLAGS = "--dataset cifar100 --way_pretrain 3 --pretrain_epochs 1 --image_size 16".split()


def manifest(root: Path, folder: str = "3way-16px") -> Path:
    return root / "teachers" / "cifar100" / "conv4" / folder / "teachers.csv"


def test_finished_teachers_are_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data_root", str(root), *FLAGS]
    pretrain.main([*where, "--pre_model_num", "2"])
    before = [row.path.read_bytes() for row in read_manifest(manifest(root))]
    pretrain.main([*where, "--pre_model_num", "3"])
    rows = read_manifest(manifest(root))
    assert [row.path.read_bytes() for row in rows[:2]] == before
    assert len(rows) == 3
    rows[1].path.unlink()
    pretrain.main([*where, "--pre_model_num", "3"])  # the missing one is trained again, to the same weights
    assert rows[1].path.read_bytes() == before[1]
    pretrain.main([*where, "--pre_model_num", "3", "--seed", "5"])
    assert "are kept" in capsys.readouterr().out
    pretrain.main([*where, "--pre_model_num", "1", "--seed", "5", "--overwrite"])
    rows = read_manifest(manifest(root))
    assert rows[0].path.read_bytes() != before[0]
    assert [row.path.read_bytes() for row in rows[1:2]] == before[1:]  # the others are still listed
    assert len(rows) == 3


def test_disjoint_classes_cover_the_set(root: Path) -> None:
    pretrain.main(["--data_root", str(root), "--num_class_per_task", "3", "--pretrain_epochs", "1", "--image_size", "16"])
    rows = read_manifest(manifest(root, "3way-disjoint-16px"))
    assert [row.class_ids for row in rows] == [(0, 1, 2), (3, 4, 5, 6)]


def test_the_best_epoch_is_kept_by_copy() -> None:
    """Trained on until it is worse again, the returned weights must still be those of the best epoch."""
    from tqdm import tqdm

    torch.manual_seed(0)
    spec = SPECS["cifar100"]
    images = torch.randint(0, 255, (24, 3, 16, 16), dtype=torch.uint8)
    labels = torch.arange(3).repeat(8)
    network = create_model("conv4", 3, 16)
    with tqdm(disable=True) as bar:
        state, best = train_teacher(
            network, "conv4", (images, labels), (images, labels), spec, Recipe(epochs=6, lr=0.3), torch.Generator(), bar
        )
    from methods.teachers.pretraining import accuracy

    assert any(not torch.equal(value, network.state_dict()[name]) for name, value in state.items())
    network.load_state_dict(state)
    assert accuracy(network, images, labels, spec) == pytest.approx(best)


def test_the_papers_recipes() -> None:
    network = create_model("conv4", 3, 16)
    adam, _ = make_optimizer(network, "conv4", Recipe())
    sgd, schedule = make_optimizer(network, "resnet10", Recipe(milestones=(30, 50, 80)))
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0] | {"lr": 0.01, "weight_decay": 0} == adam.param_groups[0]
    assert sgd.param_groups[0] | {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4} == sgd.param_groups[0]
    assert sorted(schedule.milestones) == [30, 50, 80]
    assert recipe_from(pretrain.parse_args(["--milestones", "4", "9"])).milestones == (4, 9)


def test_bad_pools_are_refused(root: Path) -> None:
    for flags, message in (
        (["--way_pretrain", "9"], "9 classes cannot"),
        (["--pre_backbone", "vgg"], "unknown backbone"),
        (["--dataset", "imagenet"], "unknown dataset"),
        (["--pre_model_num", "0"], "expected 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain.main(["--data_root", str(root), *flags])


def test_checkpoints_hold_nothing_but_tensors(data_root: Path) -> None:
    row = read_manifest(data_root / "teachers" / "cifar100" / "conv4" / "3way-16px" / "teachers.csv")[0]
    assert set(checkpoint.load(row.path)) == {"state_dict"}
