"""Fast-Datafree and the rows it is compared with, as their users run them and from inside."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import main
import pretrain
from methods import methods_of
from methods.dfkd import CMI, DFAD, Generative
from methods.experiments.whole_class import WholeClassMethod
from methods.fast import RESET_CALL, Fast, FastMeta
from methods.teachers.classifiers import load_classifier
from models import create_classifier
from utils import checkpoint
from utils.errors import UserError
from utils.files import digest

Flags = Callable[..., list[str]]
Build = Callable[..., Any]
DATA_FREE = [name for name in methods_of("classification") if name not in ("scratch", "vanilla_kd")]


@pytest.mark.parametrize("method", methods_of("classification"))
def test_from_a_command_to_a_number(method: str, flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for(method), "--run_name", "mine", "--save_images"])
    run = tmp_path / "runs" / "mine"
    result = json.loads((run / "result.json").read_text())
    assert 0 <= result["accuracy"]["cifar10"]["mean"] <= 1
    assert result["images"] == 24
    assert result["selected_at"] == 2  # the last epoch, whatever the test split says
    assert result["seconds"]["total"] > 0
    assert ("generation" in result["seconds"]) == (method in DATA_FREE)
    assert ("its teacher (ceiling)" in result["yardsticks"]) == (method != "scratch")
    assert "chance" in capsys.readouterr().out
    assert bool(list((run / "images").glob("synthetic_*.png"))) == (method in DATA_FREE)
    best = checkpoint.load(run / "best.pt")
    assert best["class_names"] == ["class_0", "class_1", "class_2"]
    main.main(["--evaluate", str(run)])
    again = json.loads((run / "evaluate.json").read_text())
    assert again["accuracy"] == result["accuracy"]


@pytest.mark.parametrize("method", DATA_FREE)
def test_teachers_stay_as_they_are_and_hooks_are_gone(method: str, build: Build) -> None:
    run: WholeClassMethod = build(method).method
    before = {name: value.clone() for name, value in run.teacher.state_dict().items()}
    learnt = {name: value.clone() for name, value in run.network.state_dict().items()}
    numbers = run.train_iteration(0)
    assert all(torch.isfinite(torch.tensor(value)) for value in numbers.values())
    assert all(torch.equal(value, before[name]) for name, value in run.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in run.teacher.parameters())
    assert any(not torch.equal(value, learnt[name]) for name, value in run.network.state_dict().items())
    networks = [*run.teacher.modules(), *run.network.modules()]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in networks)


@pytest.mark.parametrize("method", DATA_FREE)
def test_generation_leaves_the_student_alone(method: str, build: Build) -> None:
    run = build(method).method
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    run.synthesize(0, 1)
    assert all(torch.equal(value, before[name]) for name, value in run.network.state_dict().items())
    assert all(parameter.grad is None for parameter in run.network.parameters())
    images = run.sample(5)
    assert images.shape == (5, 3, 16, 16)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


@pytest.mark.parametrize("name", ["fast", "fast_meta"])
def test_warm_up_makes_images_and_no_steps(name: str, build: Build) -> None:
    run = build(name, "--warmup", "1", "--adv", "1").method
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    rate = run.student.optimizer.param_groups[0]["lr"]
    assert "distillation_loss" not in run.train_iteration(0)
    assert len(run.images) == 2 * 8  # ep_steps / kd_steps calls
    assert run.student.optimizer.param_groups[0]["lr"] == rate
    assert all(torch.equal(value, before[key]) for key, value in run.network.state_dict().items())
    assert "distillation_loss" in run.train_iteration(1)
    assert run.student.optimizer.param_groups[0]["lr"] < rate


def test_what_is_reset_and_when(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of --reset_bn nothing is seen, as in the released code."""
    run: FastMeta = build("fast_meta", "--reset_l0", "1", "--reset_bn", "1", "--warmup", "1").method
    monkeypatch.setattr(Fast, "synthesize", lambda *what: {})
    with torch.no_grad():
        for parameter in run.generator.parameters():
            parameter.fill_(7)
    run.synthesize(0, RESET_CALL)
    assert all(bool((parameter == 7).all()) for parameter in run.generator.parameters())
    run.synthesize(0, RESET_CALL + 1)
    changed = [name for name, parameter in run.generator.named_parameters() if not bool((parameter == 7).all())]
    assert changed == ["expand.weight", "expand.bias", "layers.0.weight", "layers.0.bias"]


@pytest.mark.usefixtures("float64")
def test_the_generator_works_against_the_student(build: Build) -> None:
    """The released code passes the teacher as the student, which makes the adversarial term nothing."""
    run: Generative = build("dfad").method
    assert isinstance(run, DFAD)
    images = torch.rand(6, 3, 16, 16)
    with torch.no_grad():
        apart = F.l1_loss(run.student.logits(images), run.teacher(images))
    assert float(apart) > 0.01
    assert float(run.generator_loss(images)) == pytest.approx(-float(apart), rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_deep_inversion_counts_the_student_as_a_constant_where_it_is_told_to(build: Build) -> None:
    """--adv_detach leaves the value; the gradient loses the way through the student."""
    found = []
    for flags in ([], ["--adv_detach"]):
        method = build("deepinv", "--adv", "1", *flags).method
        x = torch.linspace(0, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16).requires_grad_()
        loss = method.pixel_loss(x, torch.tensor([0, 1]))
        found.append((float(loss.detach()), torch.autograd.grad(loss, x)[0]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    assert float((found[0][1] - found[1][1]).norm()) > 1e-6 * float(found[0][1].norm())


def test_dafl_adds_its_terms(build: Build) -> None:
    run: Generative = build("dafl", "--oh", "2", "--act", "3", "--balance", "5", "--bn", "0", "--adv", "0").method
    images = torch.rand(6, 3, 16, 16)
    features, logits = run.teacher.features_and_logits(images)
    p = torch.softmax(logits, 1)
    mean = p.mean(0)
    cross_entropy = -(p.max(1).values.log()).mean()
    wanted = 2 * cross_entropy - 3 * features.abs().mean() + 5 * (mean * mean.log()).sum()
    assert float(run.generator_loss(images).detach()) == pytest.approx(float(wanted), rel=1e-9)
    assert run.generator.latent_dim == 512


def test_cmi_moves_its_head_once_for_each_step(build: Build) -> None:
    run: CMI = build("cmi", "--g_steps", "3").method
    run.synthesize(0, 1)
    steps = {int(state["step"]) for state in run.contrast.optimizer.state.values()}
    assert steps == {3}
    assert run.contrast.bank.shape[1] == 8
    run.synthesize(1, 2)
    assert run.contrast.bank.shape[1] == 16


def test_images_to_begin_with(build: Build, data_root: Path) -> None:
    run = build("fast", "--cmi_init", str(data_root / "cifar10" / "train")).method
    assert len(run.images) == 24


def test_a_teacher_from_scratch_becomes_a_teacher(build: Build, flags_for: Flags, tmp_path: Path) -> None:
    pretrain.main(["--full", *flags_for("scratch", 3)[2:], "--save_dir", str(tmp_path / "runs" / "teacher")])
    kept = checkpoint.load(tmp_path / "new.pth")
    run = build("vanilla_kd", "--teacher_ckpt", str(tmp_path / "new.pth")).method
    assert all(torch.equal(value, kept["state_dict"][name]) for name, value in run.teacher.network.state_dict().items())
    pretrain.main(["--full", "--resume", str(tmp_path / "runs" / "teacher")])  # the run knows what it is
    flags = [flag for flag in flags_for("scratch") if flag != "--replace_teacher"]
    with pytest.raises(UserError, match=r"new\.pth exists already"):
        main.main(flags)


def test_a_student_learns_from_real_images(flags_for: Flags, tmp_path: Path) -> None:
    """Against a teacher that knows its classes, a few epochs of ordinary distillation are enough."""
    main.main([*flags_for("scratch", 12), "--batch_size", "8", "--run_name", "teacher"])
    flags = [
        *flags_for("vanilla_kd", 12),
        "--teacher_ckpt",
        str(tmp_path / "new.pth"),
        "--beta",
        "0.1",
        "--run_name",
        "student",
    ]
    main.main(flags)
    results = [json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("teacher", "student")]
    assert results[0]["accuracy"]["cifar10"]["mean"] > 0.9
    assert results[1]["accuracy"]["cifar10"]["mean"] > 0.7


def test_no_image_on_the_machine(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for("fast_meta"), "--data_root", str(tmp_path / "empty"), "--num_classes", "3", "--run_name", "mine"])
    assert "not evaluated" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())["evaluated"] is False
    assert (tmp_path / "runs" / "mine" / "best.pt").is_file()


@pytest.mark.parametrize("way", ["tsne", "pca"])
def test_the_picture_of_features(way: str, flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("fast_meta", 1), "--embed_plot", way, "--run_name", "mine"])
    assert (tmp_path / "runs" / "mine" / "images" / "embedding.png").stat().st_size > 5000


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_training(flags_for: Flags, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--embed_plot needs a teacher and test images"):
        main.main([*flags_for("scratch", 1), "--embed_plot"])
    assert not (tmp_path / "runs").exists()


def test_selection(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for("fast_meta", 3), "--select_on", "agreement", "--run_name", "agreeing"])
    looks = [json.loads(line) for line in (tmp_path / "runs" / "agreeing" / "metrics.jsonl").read_text().splitlines()]
    best = max(looks, key=lambda line: line["val"])
    assert checkpoint.load(tmp_path / "runs" / "agreeing" / "best.pt")["iteration"] == best["iteration"]
    main.main([*flags_for("fast_meta", 3), "--run_name", "blind"])
    last, blind = (checkpoint.load(tmp_path / "runs" / name / "last.pt")["method"]["student"] for name in ("agreeing", "blind"))
    assert all(torch.equal(value, blind["network"][name]) for name, value in last["network"].items())  # looking changes nothing
    main.main([*flags_for("fast_meta", 1), "--select_on", "test", "--run_name", "cheating"])
    assert "selected on test" in capsys.readouterr().out


def test_a_student_scored_as_it_is(flags_for: Flags, data_root: Path, tmp_path: Path) -> None:
    weights = data_root / "teachers" / "wrn16_1.pth"
    main.main([*flags_for("fast"), "--evaluate_only", "--student_ckpt", str(weights), "--run_name", "mine"])
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert result["accuracy"]["cifar10"]["mean"] == result["yardsticks"]["its teacher (ceiling)"]["cifar10"]["mean"]


def test_what_a_students_file_says_is_held_against_the_set(flags_for: Flags, tmp_path: Path) -> None:
    network = create_classifier("wrn16_1", 3, 16)
    checkpoint.save({"state_dict": network.state_dict(), "class_names": ["class_1", "class_0", "class_2"]}, tmp_path / "s.pth")
    with pytest.raises(UserError, match="has the classes in the order class_1, class_0, class_2"):
        main.main([*flags_for("fast"), "--evaluate_only", "--student_ckpt", str(tmp_path / "s.pth")])


def test_a_run_does_not_go_on_with_other_classes(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("fast_meta", 1), "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    last = checkpoint.load(run / "last.pt")
    assert last["stands_on"][:-1] == ["the class class_0", "the class class_1", "the class class_2"]
    assert last["stands_on"][-1].startswith("the file of the teacher, ")
    checkpoint.save(last | {"stands_on": ["the class owl", *last["stands_on"][1:]]}, run / "last.pt")
    for again in (["--resume", str(run), "--epochs", "2"], ["--evaluate", str(run)]):
        with pytest.raises(UserError, match=r"began with the class owl, where there is the class class_0 now"):
            main.main(again)


def test_code_of_somebodys_is_no_teacher_of_a_whole_set(flags_for: Flags, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')\n")
    for flag in ("--teacher", "--student"):
        with pytest.raises(UserError, match="is somebody's code, which runs only as an arch in a list"):
            main.main([*flags_for("fast_meta", 1), flag, f"{tmp_path}/theirs.py:make"])


def test_flags_that_a_method_does_not_read_are_said(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    build("dafl", "--cr", "0.8", "--bn_mmt", "0")
    assert "has no cr:" in capsys.readouterr().err


def test_torchvision_s_networks_and_weights(flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ImageNet recipe on small images; weights come from torchvision's own cache, here a stand-in."""
    from utils.vision import import_torchvision

    import_torchvision()
    from torchvision.models import mobilenet_v2

    asked: list[Any] = []

    def get_model(name: str, weights: str | None = None, **more: Any) -> torch.nn.Module:
        asked.append((name, weights))
        return mobilenet_v2(num_classes=3)

    monkeypatch.setattr("torchvision.models.get_model", get_model)
    flags = flags_for("fast_meta", 1)
    at = flags.index("--teacher_ckpt")
    flags = [*flags[:at], *flags[at + 2 :], "--teacher", "mobilenetv2_imagenet", "--pretrained", "--image_size", "32"]
    main.main([*flags, "--run_name", "mine"])
    assert asked == [("mobilenet_v2", "IMAGENET1K_V1")]
    assert (tmp_path / "runs" / "mine" / "result.json").is_file()


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("fast_meta", "--teacher_ckpt nowhere.pth", "pretrain.py --full --model wrn16_1 --dataset cifar10"),
        ("fast_meta", "--data_root nowhere", "write_whole_filelist.py --dataset cifar10, or give --num_classes"),
        ("fast_meta", "--dataset miniimagenet", "choose from cifar10, cifar100, imagenet"),
        ("fast_meta", "--warmup 2", "leaves none of --epochs 2"),
        ("fast_meta", "--kd_steps 9", "--ep_steps 2 is less than --kd_steps 9"),
        ("fast_meta", "--student resnet7", "unknown classifier 'resnet7'"),
        ("fast_meta", "--teacher vgg11", "does not fit the VGG"),
        ("fast_meta", "--image_size 18", "no multiple of 4"),
        ("fast_meta", "--pretrained", "--pretrained and --teacher_ckpt both"),
        ("fast_meta", "--save_dir x --run_name y", "both name the run directory"),
        ("fast", "--cmi_init nowhere", "is missing"),
        ("vanilla_kd", "--transfer_set cifar100 --beta 0.1", "use --beta 0"),
        ("scratch", "--select_on agreement", "no teacher to agree with"),
    ],
)
def test_mistakes_are_explained(method: str, more: str, message: str, flags_for: Flags, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main.main([*flags_for(method), *more.split()])
    assert not (tmp_path / "runs").exists()


def test_a_file_of_other_classes(data_root: Path) -> None:
    from datasets.registry import get_spec

    spec = get_spec("cifar10", "classification")
    with pytest.raises(UserError, match="expected"):
        load_classifier("wrn16_1", data_root / "teachers" / "wrn16_1.pth", spec, ["a", "b"], 16, torch.device("cpu"))


def test_a_teacher_and_its_set_meet_by_name(data_root: Path, tmp_path: Path) -> None:
    from datasets.registry import get_spec

    spec = get_spec("cifar10", "classification")
    content = checkpoint.load(data_root / "teachers" / "wrn16_1.pth")
    names = ["ant", "bee", "cat"]
    for said, words in ((["ant", "cat", "bee"], "in the order ant, cat, bee"), (["ant", "bee", "dog"], "alone has dog")):
        checkpoint.save({"state_dict": content["state_dict"], "class_names": said}, tmp_path / "t.pth")
        with pytest.raises(UserError, match=words):
            load_classifier("wrn16_1", tmp_path / "t.pth", spec, names, 16, torch.device("cpu"))
    checkpoint.save({"state_dict": content["state_dict"], "class_names": names}, tmp_path / "t.pth")
    assert load_classifier("wrn16_1", tmp_path / "t.pth", spec, names, 16, torch.device("cpu")).class_names == tuple(names)


def test_train_and_test_of_a_set_meet_by_name(data_root: Path, flags_for: Flags, tmp_path: Path) -> None:
    shutil.copytree(data_root / "cifar10", tmp_path / "data" / "cifar10")
    path = tmp_path / "data" / "cifar10" / "split" / "test.csv"
    table = pd.read_csv(path)
    table["label"] = table.label.str.upper()
    table.to_csv(path, index=False)
    with pytest.raises(UserError, match="the classes of cifar10/train and of cifar10/test differ"):
        main.main([*flags_for("scratch"), "--data_root", str(tmp_path / "data"), "--teacher_ckpt", str(tmp_path / "x.pth")])


def test_a_run_goes_on_with_the_teacher_it_began_with(flags_for: Flags, tmp_path: Path) -> None:
    flags = flags_for("fast_meta", 1)
    teacher = tmp_path / "t.pth"
    shutil.copy(flags[flags.index("--teacher_ckpt") + 1], teacher)
    main.main([*flags, "--teacher_ckpt", str(teacher), "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    content = checkpoint.load(teacher)
    content["state_dict"] = {name: value + 0.1 for name, value in content["state_dict"].items()}
    checkpoint.save(content, teacher)
    with pytest.raises(UserError, match="began with the file of the teacher, "):
        main.main(["--resume", str(run)])
    main.main(["--evaluate", str(run)])  # the student is what it is
    last = checkpoint.load(run / "last.pt")
    checkpoint.save(last | {"stands_on": last["stands_on"][:-1]}, run / "last.pt")  # as earlier versions noted it
    main.main(["--resume", str(run)])


def test_a_teachers_file_that_came_meanwhile_is_kept(flags_for: Flags, tmp_path: Path) -> None:
    teacher = tmp_path / "checkpoints" / "t.pth"
    flags = [flag for flag in [*flags_for("scratch", 1), "--teacher_ckpt", str(teacher)] if flag != "--replace_teacher"]
    with pytest.raises(UserError, match="--seeds: the runs would all write one teacher's file"):
        main.main([*flags, "--seeds", "0", "1"])
    main.main([*flags, "--run_name", "first"])
    checkpoint.save({"another": torch.ones(1)}, teacher)
    kept = digest(teacher)
    (tmp_path / "runs" / "first" / "result.json").unlink()  # as if it had been stopped before
    main.main(["--resume", str(tmp_path / "runs" / "first")])
    assert digest(teacher) == kept
