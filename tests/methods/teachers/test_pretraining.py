import shutil
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

import pretrain
from datasets.registry import SPECS
from methods.teachers.manifest import read_manifest
from methods.teachers.pretraining import Recipe, make_optimizer, recipe_from, train_teacher, train_together
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
    assert "3 finished teachers" in capsys.readouterr().out
    for change in (["--pretrain_lr", "0.001"], ["--batch_size", "7"], ["--milestones", "1"]):
        pretrain.main([*where, "--pre_model_num", "3", *change])
        assert "3 finished teachers" in capsys.readouterr().out
    pretrain.main([*where, "--pre_model_num", "3"])
    assert "are kept" not in capsys.readouterr().out
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
    assert accuracy(network, images, labels, spec) == best


def test_the_papers_recipes() -> None:
    network = create_model("conv4", 3, 16)
    adam, _ = make_optimizer(network.parameters(), "conv4", Recipe())
    sgd, schedule = make_optimizer(network.parameters(), "resnet10", Recipe(milestones=(30, 50, 80)))
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
        (["--pre_model_num", "0"], "expected a whole number from 1"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain.main(["--data_root", str(root), *flags])


def test_checkpoints_hold_weights_and_how_they_were_trained(data_root: Path) -> None:
    row = read_manifest(data_root / "teachers" / "cifar100" / "conv4" / "3way-16px" / "teachers.csv")[0]
    content = checkpoint.load(row.path)
    assert set(content) == {"state_dict", "settings"}
    assert content["settings"]["epochs"] == row.epochs


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("arch", ["conv4", pytest.param("resnet10", marks=pytest.mark.slow)])
def test_together_they_become_what_they_become_alone(arch: str) -> None:
    spec, recipe = SPECS["cifar100"], Recipe(epochs=2, batch_size=8, clip=0.5, lr=1e-3)
    torch.manual_seed(0)
    data = [(torch.randint(0, 255, (20, 3, 16, 16), dtype=torch.uint8), torch.arange(20) % 3) for _ in range(3)]
    held_out = [(images[:6], labels[:6]) for images, labels in data]

    def networks() -> list:
        made = []
        for seed in range(3):
            torch.manual_seed(seed)
            made.append(create_model(arch, 3, 16))
        return made

    def streams() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in range(3)]

    with tqdm(disable=True) as bar:
        together = train_together(networks(), arch, data, held_out, spec, recipe, streams(), bar)
        alone = [
            train_teacher(network, arch, some, others, spec, recipe, stream, bar)
            for network, some, others, stream in zip(networks(), data, held_out, streams(), strict=True)
        ]
    for (one, accuracy_one), (other, accuracy_other) in zip(together, alone, strict=True):
        assert accuracy_one == accuracy_other
        for name, value in other.items():
            assert torch.allclose(one[name], value, rtol=1e-9, atol=1e-9), name
    assert any(not torch.equal(value, together[1][0][name]) for name, value in together[0][0].items())


def test_a_pool_trained_together(root: Path) -> None:
    where = ["--data_root", str(root), *FLAGS, "--pre_model_num", "3"]
    pretrain.main([*where, "--together", "2"])
    rows = read_manifest(manifest(root))
    assert [row.path.name for row in rows] == ["teacher_000.pth", "teacher_001.pth", "teacher_002.pth"]
    states = [checkpoint.load(row.path)["state_dict"] for row in rows]
    create_model("conv4", 3, 16).load_state_dict(states[1])
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])
