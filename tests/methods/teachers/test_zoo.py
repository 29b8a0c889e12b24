"""Somebody's own teachers: other people's architectures, files and class lists, side by side."""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import main
import pretrain
from methods.teachers import __main__ as command
from methods.teachers.manifest import find_rows
from methods.teachers.pool import TeacherPool
from models import create_model
from utils.errors import UserError

Flags = Callable[..., list[str]]
CODE = """
from torch import nn

def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    )

def wrong(num_classes):
    return num_classes
"""
ROWS = {  # file: architecture and classes; "ant" is known to three teachers
    "a.pth": ("conv4", "ant;bee;cat"),
    "b.safetensors": ("torchvision/resnet18", "dog;ant;emu;fox"),
    "c.pth": ("timm/resnet10t", "ant;gnu;bee;hen;cow"),
    "d.pth": ("my_networks:make", "ibis;jay;koi"),
}


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of four teachers of four families, as if trained, of 16 to 32 pixels; without image set, numbers or accuracy."""
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    (tmp_path / "my_networks.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    lines = ["path,arch,class_names,image_size,mean,std"]
    torch.manual_seed(0)
    for number, (name, (arch, classes)) in enumerate(ROWS.items()):
        network = create_model(arch, len(classes.split(";")), 16).loadable
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)  # as training leaves them
        if name.endswith("safetensors"):
            save_file(network.state_dict(), tmp_path / name)
        else:
            torch.save({"state_dict": network.state_dict()} if number else network.state_dict(), tmp_path / name)
        lines.append(f"{name},{arch},{classes},{32 if number == 1 else 16},0.5;0.5;0.5,0.25;0.25;0.25")
    path = tmp_path / "zoo.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


ALLOWED = ["--allow_code", "my_networks:make"]


def pool_of(zoo: Path, *flags: str) -> TeacherPool:
    args = main.parse_args(["--method", "free", "--teachers", str(zoo), *flags])
    return TeacherPool(find_rows(args), torch.device("cpu"))


@pytest.mark.usefixtures("float64")
def test_classes_are_joined_by_name(zoo: Path) -> None:
    pool = pool_of(zoo, *ALLOWED)
    names = [name.split("/")[1] for name in pool.class_names]
    assert names == sorted("ant bee cat dog emu fox gnu hen cow ibis jay koi".split())
    for teacher_id, (_, classes) in enumerate(ROWS.values()):
        teacher = pool[teacher_id]
        assert [names[class_id] for class_id in teacher.class_ids] == classes.split(";")
        images = torch.rand(3, 3, 20, 20)
        assert teacher(images).shape == (3, len(classes.split(";")))
        assert torch.allclose(teacher.network.head(teacher.features(images)), teacher(images), rtol=1e-9, atol=1e-12)


def test_a_narrowed_teacher_gives_the_same_answers_for_fewer_classes(zoo: Path) -> None:
    teacher, images = pool_of(zoo, *ALLOWED)[2], torch.rand(3, 3, 16, 16)
    few = teacher.narrowed(2)
    places = [teacher.class_ids.index(class_id) for class_id in few.class_ids]
    assert torch.equal(few(images), teacher(images)[:, places])
    assert teacher.narrowed(5) is teacher
    assert few.network is teacher.network


@pytest.mark.parametrize("method", ["free", "tgr", "purer", "chorus", "bidf_mkd", "average"])
def test_a_learner_comes_out_without_any_data(method: str, zoo: Path, flags_for: Flags, tmp_path: Path) -> None:
    """No image set at all: an empty data root, teachers with three to five classes, a learner with three."""
    flags = [*flags_for(method), "--teachers", str(zoo), *ALLOWED, "--data_root", str(tmp_path / "nothing")]
    main.main([*flags, "--run_name", "own"])
    result = json.loads((tmp_path / "runs" / "own" / "result.json").read_text())
    assert result["evaluated"] is False
    best = torch.load(tmp_path / "runs" / "own" / "best.pt", weights_only=True)
    assert len(best["class_names"]) == 12


def test_a_list_runs_no_code_that_was_not_named(zoo: Path) -> None:
    with pytest.raises(UserError, match=r"asks to run code, my_networks:make; if it is yours, add --allow_code"):
        pool_of(zoo)


def test_the_check_says_what_each_teacher_is(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["check", str(zoo), *ALLOWED])
    said = capsys.readouterr().out
    assert said.count("good") == 4
    assert "20 layers" in said  # torchvision's resnet18
    assert "4 teachers, 12 different classes" in said


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.pth,timm/no_such_net,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "no_such_net"),
        ("a.pth,torchvision/no_such_net,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "no_such_net"),
        ("a.pth,somebody,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "unknown backbone 'somebody'"),
        ("a.pth,torchvision/resnet18,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "does not fit"),
        ("b.safetensors,torchvision/resnet18,ant;bee,32,.5;.5;.5,.2;.2;.2", "does not fit"),
        ("missing.pth,conv4,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "does not exist"),
        ("zoo.csv,conv4,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "cannot be read|damaged"),
        ("a.pth,my_networks:wrong,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "expected a torch.nn.Module"),
        ("a.pth,my_networks:gone,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "cannot be built"),
        ("a.pth,conv4,ant;ant;cat,16,.5;.5;.5,.2;.2;.2", "stands twice"),
        ("a.pth,conv4,,16,.5;.5;.5,.2;.2;.2", "0 class_ids"),
        ("a.pth,conv4,ant;bee;cat,16,.5,.2", "3 numbers"),
        ("a.pth,conv4,ant;bee;cat,0,.5;.5;.5,.2;.2;.2", "expected pixels from 1"),
        ("a.pth,conv4,ant;bee;cat,x,.5;.5;.5,.2;.2;.2", "line 2: column image_size: 'x' is not a whole number"),
        (
            "a.pth,conv4,ant;bee;cat,16,123.675;116.28;103.53,.2;.2;.2",
            r"mean: 123\.675 is on the scale of bytes.*0\.485",
        ),
        ("a.pth,conv4,ant;bee;cat,16,.5;.5;.5,58;57;57", "column std: 58 is on the scale of bytes"),
        ("a.pth,conv4,ant;bee;cat,16,nan;.5;.5,.2;.2;.2", "column mean"),
        ("a.pth,conv4,ant;bee;cat,16,.5;.5;.5,.2;.2;0", "expected numbers above 0"),
        (",conv4,ant;bee;cat,16,.5;.5;.5,.2;.2;.2", "column path is empty"),
        ("a.pth,conv4,ant;bee;cat,16,.5;.5;.5,.2;.2;.2,7", "has 7 cells and the header 6"),
    ],
)
def test_the_check_names_what_is_wrong(zoo: Path, row: str, words: str) -> None:
    zoo.write_text(f"path,arch,class_names,image_size,mean,std\n{row}\n")
    allowed = [flag for name in ("wrong", "gone") for flag in ("--allow_code", f"my_networks:{name}")]
    with pytest.raises(UserError, match=words):
        command.main(["check", str(zoo), *allowed])


def test_names_are_compared_without_their_blanks(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = "16,.5;.5;.5,.2;.2;.2"
    rows = [f"a.pth, conv4,ant; bee ;cat,{form}", f"a.pth,conv4,ant;bee;cat,{form}", f"a.pth,conv4,Ant;bee;cat,{form}"]
    zoo.write_text("\n".join(["path,arch,class_names,image_size,mean,std", *rows]))
    command.main(["check", str(zoo)])
    said = capsys.readouterr().out
    assert "3 teachers, 4 different classes" in said
    assert "note: the classes own/Ant and own/ant look alike and are taken for two" in said


def test_what_a_file_says_of_itself_is_held_against_the_list(zoo: Path) -> None:
    state = create_model("conv4", 3, 16).state_dict()
    torch.save({"state_dict": state, "class_to_idx": {"ant": 0, "cat": 1, "bee": 2}}, zoo.parent / "a.pth")
    with pytest.raises(UserError, match="in the order ant, cat, bee; what it is listed with in the order ant, bee, cat"):
        pool_of(zoo, *ALLOWED).check()


def test_which_weights_are_meant_stands_in_the_list(zoo: Path) -> None:
    state = create_model("conv4", 3, 16).state_dict()
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": average}, zoo.parent / "a.pth")
    row = "a.pth,conv4,ant;bee;cat,16,.5;.5;.5,.2;.2;.2"
    zoo.write_text(f"path,arch,class_names,image_size,mean,std\n{row}\n")
    with pytest.raises(UserError, match="say which are meant, in the list's column `weights`"):
        pool_of(zoo).check()
    zoo.write_text(f"path,arch,class_names,image_size,mean,std,weights\n{row},state_dict_ema\n")
    assert torch.equal(pool_of(zoo)[0].network.head.bias, average["head.bias"])


def test_teachers_that_know_the_test_classes_are_named(
    zoo: Path, flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = "16,.5;.5;.5,.2;.2;.2"
    zoo.write_text(f"path,arch,class_names,image_size,mean,std\na.pth,conv4,ant;bee;meta_test_1,{form}\n")
    main.main([*flags_for("teacher_ncm"), "--dataset", "cifar100", "--teachers", str(zoo), "--run_name", "mine"])
    assert "teachers know 1 classes of meta_test by name (meta_test_1)" in capsys.readouterr().err
    assert json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())["test_classes_known_to_teachers"] == [
        "meta_test_1"
    ]


def test_a_network_without_gradients_is_a_black_box(
    zoo: Path, flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        CODE.replace("return nn.Sequential(", "return Closed(", 1)
        + """
import torch

class Closed(nn.Sequential):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)
"""
    )
    (tmp_path / "closed.py").write_text(code)
    monkeypatch.delitem(sys.modules, "closed", raising=False)
    zoo.write_text("path,arch,class_names,image_size,mean,std\nd.pth,closed:make,ibis;jay;koi,16,.5;.5;.5,.2;.2;.2\n")
    allowed = ["--teachers", str(zoo), "--allow_code", "closed:make"]
    command.main(["check", str(zoo), "--allow_code", "closed:make"])
    assert "passes no gradient to the images: of use as a black box alone" in capsys.readouterr().out
    with pytest.raises(UserError, match="of use as a black box alone"):
        main.main([*flags_for("free"), *allowed])
    main.main([*flags_for("chorus"), *allowed, "--black_box", "--data_root", str(tmp_path / "nothing")])


def test_one_bad_teacher_hides_no_good_one(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.write_text(zoo.read_text().replace("a.pth", "missing.pth"))
    with pytest.raises(UserError, match="1 of 4 teachers cannot be used, first"):
        command.main(["check", str(zoo), *ALLOWED])
    assert capsys.readouterr().out.count("good") == 3


def test_teachers_of_other_libraries_can_be_trained_here(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar100").symlink_to(data_root / "cifar100")
    where = ["--data_root", str(tmp_path), "--way_pretrain", "3", "--pre_model_num", "1", "--image_size", "32"]
    pretrain.main([*where, "--pretrain_epochs", "1", "--pre_backbone", "torchvision/resnet18"])
    args = main.parse_args(["--method", "free", *where, "--pre_backbone", "torchvision/resnet18"])
    pool = TeacherPool(find_rows(args), torch.device("cpu"))
    assert pool[0](torch.rand(2, 3, 32, 32)).shape == (2, 3)
    assert pool.rows[0].arch == "torchvision/resnet18"
