import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from datasets.own import own_set
from methods import get_method
from methods.experiments.few_shot import FewShotExperiment
from methods.free import FREE
from methods.runs.classifier import FewShotClassifier
from utils import checkpoint
from utils.errors import UserError


@pytest.mark.parametrize(("image_set", "mirrored"), [("cifar100", True), ("glyphs", False)])
def test_a_learner_without_teachers_is_read_as_its_image_set_allows(
    build: Callable[..., Any], image_set: str, mirrored: bool
) -> None:
    experiment = build("random", "--dataset", image_set, "--metalearner", "ncm", "--readout", "whitened", "mirror")
    assert experiment.method.outcome.readout.mirror == mirrored
    assert experiment.method.outcome.readout.matrix is not None


def test_a_read_out_that_changes_with_evaluate_is_held_against_the_learner(
    flags_for: Callable[..., list[str]], tmp_path: Path
) -> None:
    main.main([*flags_for("free", 1), "--metalearner", "maml", "--run_name", "head"])
    with pytest.raises(UserError, match="--readout mirror: maml decides by a head"):
        main.main(["--evaluate", str(tmp_path / "runs" / "head"), "--readout", "mirror"])
    main.main([*flags_for("chorus", 1), "--run_name", "means", "--sources", "procedural"])
    run = tmp_path / "runs" / "means"
    whitened, kept = json.loads((run / "result.json").read_text()), (run / "best.pt").read_bytes()
    main.main(["--evaluate", str(run), "--readout", "plain"])
    plain = json.loads((run / "evaluate-3w1s-plain.json").read_text())
    assert plain["readout"] == ["plain"]
    assert plain["one_shot_temperature"] != whitened["one_shot_temperature"]
    assert (run / "best.pt").read_bytes() == kept
    main.main(["--evaluate", str(run), "--readout", *whitened["readout"]])
    again = json.loads((run / "evaluate-3w1s.json").read_text())
    assert again["one_shot_temperature"] == whitened["one_shot_temperature"]
    assert checkpoint.load(run / "best.pt")["temperature"] == whitened["one_shot_temperature"]


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("free", "--answers label", "free as it is typed asks none"),
        ("bidf_mkd", "--digits 1", "by --ZO alone"),
        ("real", "--api_dtype uint8", "real as it is typed asks none"),
        ("bidf_mkd", "--query_budget 1000", "by --ZO alone"),
        ("free", "--pretrain --dry_run", "leave out --dry_run"),
        ("free", "--pretrain --seeds 0 1", "leave out --dry_run and --seeds"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(
    method: str, more: str, message: str, flags_for: Callable[..., list[str]]
) -> None:
    flags = [flag for flag in flags_for(method) if flag != "--ZO"]
    with pytest.raises(UserError, match=message):
        main.parse_args([*flags, *more.split()])


@pytest.mark.parametrize("typed", ["chorus", "chorus --black_box", "bidf_mkd --ZO", "teacher_ncm --ncm_on answers"])
def test_whoever_asks_may_be_told_less(typed: str, flags_for: Callable[..., list[str]]) -> None:
    method, *more = typed.split()
    assert main.parse_args([*flags_for(method), *more, "--answers", "top1"]).answers == "top1"


def test_a_run_goes_on_with_the_weights_it_began_with(
    flags_for: Callable[..., list[str]], data_root: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool"
    shutil.copytree(data_root / "teachers/cifar100/conv4/3way-16px", pool)
    flags = [*flags_for("free", 1), "--teachers", str(pool / "teachers.csv"), "--no_floors", "--run_name", "mine"]
    main.main(flags)
    run, teacher = tmp_path / "runs" / "mine", pool / "teacher_000.pth"
    content = checkpoint.load(teacher)
    content["state_dict"]["head.bias"] += 1
    checkpoint.save(content, teacher)
    with pytest.raises(UserError, match=r"began with the teacher teacher_000\.pth of .*, weights "):
        main.main(["--resume", str(run), "--epochs", "2"])
    main.main(["--evaluate", str(run)])  # the learner is what it is
    last = checkpoint.load(run / "last.pt")
    earlier = [line.partition(", weights ")[0] for line in last["stands_on"]]
    checkpoint.save(last | {"stands_on": earlier}, run / "last.pt")  # as earlier versions noted it
    main.main(["--resume", str(run), "--epochs", "2"])


def test_letters_are_not_mirrored_by_a_learner_that_was_read_so(flags_for: Callable[..., list[str]], tmp_path: Path) -> None:
    main.main([*flags_for("chorus", 1), "--sources", "procedural", "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    assert checkpoint.load(run / "best.pt")["learner"]["readout"]["mirror"]
    args = main.parse_args(["--evaluate", str(run), "--testdataset", "glyphs"])
    experiment = FewShotExperiment(get_method("chorus"), args, torch.device("cpu"))
    assert experiment.load_best(checkpoint.load(run / "best.pt"))
    assert not experiment.method.outcome.readout.mirror


@pytest.mark.parametrize("name", ["mine", "group/mine"])
def test_a_run_looks_for_what_it_kept_beside_it(name: str, flags_for: Callable[..., list[str]], tmp_path: Path) -> None:
    main.main([*flags_for("random"), "--no_floors", "--run_name", name])
    run = tmp_path / "runs" / name
    assert main.parse_args(["--evaluate", str(run)]).out == tmp_path / "runs"
    moved = Path(shutil.copytree(run, tmp_path / "elsewhere" / "copy"))
    assert main.parse_args(["--evaluate", str(moved)]).out == tmp_path / "elsewhere"


def test_a_run_from_within_its_folder(
    flags_for: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main.main([*flags_for("random"), "--no_floors", "--run_name", "mine"])
    monkeypatch.chdir(tmp_path / "runs" / "mine")
    assert main.parse_args(["--evaluate", "."]).out == tmp_path / "runs"


def test_teachers_that_can_only_be_asked_are_not_kept(flags_for: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Service:\n    class_names, image_size = ('a', 'b', 'c'), 16\n"
        "    def query(self, images):\n        return images.mean((2, 3)).softmax(1)\n"
        "def services():\n    return [Service()]\n"
    )
    place = f"{tmp_path / 'mine.py'}:services"
    flags = [*flags_for("teacher_ncm"), "--teachers", place, "--allow_code", place, "--ncm_on", "answers"]
    main.main([*flags, "--dataset", "cifar100", "--readout", "mirror", "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    assert json.loads((run / "result.json").read_text())["batch_statistics"] == "none: fixed numbers"
    with pytest.raises(UserError, match="only asked, and not kept"):
        FewShotClassifier.load(run)
    main.main(["--evaluate", str(run), "--allow_code", place])


def test_a_run_goes_on_with_images_as_they_were(flags_for: Callable[..., list[str]], data_root: Path, tmp_path: Path) -> None:
    """The list's mean and std are part of a teacher; a run of before noted the weights alone."""
    pool = tmp_path / "pool"
    shutil.copytree(data_root / "teachers/cifar100/conv4/3way-16px", pool)
    listed = pool / "teachers.csv"
    main.main([*flags_for("free", 1), "--teachers", str(listed), "--no_floors", "--run_name", "mine"])
    run, text = tmp_path / "runs" / "mine", listed.read_text()
    listed.write_text(text.replace("0.2675;0.2565;0.2761", "0.9;0.9;0.9"))
    with pytest.raises(UserError, match=r"std 0\.2675;0\.2565;0\.2761, where there is .* std 0\.9;0\.9;0\.9 now"):
        main.main(["--resume", str(run), "--epochs", "2"])
    last = checkpoint.load(run / "last.pt")
    earlier = [line.partition(", 16 pixels")[0] for line in last["stands_on"] if line.startswith("the teacher")]
    checkpoint.save(last | {"stands_on": earlier}, run / "last.pt")
    main.main(["--resume", str(run), "--epochs", "2"])


def test_frozen_teachers_are_scored_again_only_as_they_were(
    flags_for: Callable[..., list[str]], data_root: Path, tmp_path: Path
) -> None:
    """And what is loaded to be scored does not become the pool's."""
    pool = tmp_path / "pool"
    shutil.copytree(data_root / "teachers/cifar100/conv4/3way-16px", pool)
    main.main([*flags_for("teacher_ncm"), "--teachers", str(pool / "teachers.csv"), "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    main.main(["--evaluate", str(run)])
    args = main.parse_args(["--evaluate", str(run)])
    experiment = FewShotExperiment(get_method("teacher_ncm"), args, torch.device("cpu"))
    state = checkpoint.load(run / "best.pt")
    bias = "teachers.0.network.head.bias"
    state["learner"]["params"][bias] = state["learner"]["params"][bias] + 1
    before = experiment.teachers[0].network.head.bias.clone()
    experiment.load_best(state)
    assert torch.equal(experiment.teachers[0].network.head.bias, before)
    content = checkpoint.load(pool / "teacher_000.pth")
    content["state_dict"]["head.bias"] += 1
    checkpoint.save(content, pool / "teacher_000.pth")
    with pytest.raises(UserError, match=r"began with the teacher teacher_000\.pth"):
        main.main(["--evaluate", str(run)])


def test_a_folder_that_changed_does_not_change_a_learner(
    flags_for: Callable[..., list[str]], write_images: Callable[..., None], tmp_path: Path
) -> None:
    """It is scored with its own size and normalisation; and a run that trains on the folder does not go on."""
    for number in range(15):
        write_images(tmp_path / "birds" / f"bird {number:02d}", 8, number, (20, 20))
    flags = [*flags_for("real", 1), "--dataset", str(tmp_path / "birds"), "--way_test", "2", "--num_qur_test", "2"]
    main.main([*flags, "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    shutil.rmtree(tmp_path / "birds")
    for number in range(15):
        write_images(tmp_path / "birds" / f"bird {number:02d}", 12, 100 + number, (70, 90))
    own_set.cache_clear()
    args = main.parse_args(["--evaluate", str(run)])
    spec = FewShotExperiment(get_method("real"), args, torch.device("cpu")).method.learner.spec
    assert list(spec.mean) == checkpoint.load(run / "best.pt")["learner"]["spec"]["mean"]
    with pytest.raises(UserError, match="began with images of "):
        main.main(["--resume", str(run), "--epochs", "2"])


def test_a_class_that_was_renamed_is_said(
    flags_for: Callable[..., list[str]], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "teachers.csv"
    text = (data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv").read_text()
    listed.write_text(text.replace("meta_train_0", "renamed", 1))
    shutil.copytree(data_root / "teachers/cifar100/conv4/3way-16px", tmp_path, dirs_exist_ok=True)
    listed.write_text(text.replace("meta_train_", "renamed_"))
    main.main([*flags_for("teacher_ncm"), "--dataset", "cifar100", "--teachers", str(listed), "--run_name", "mine"])
    assert "which its teachers know: was one renamed?" in capsys.readouterr().err


def test_a_budget_binds_the_floors_too(flags_for: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "paid.py").write_text(PAID)
    place = f"{tmp_path}/paid.py:make"
    budget = ["--black_box", "--query_budget", "100", "--num_images", "40", "--batch_size", "8", "--sources", "procedural"]
    flags = [*flags_for("chorus", 1), "--teachers", place, *budget]
    main.main([*flags, "--run_name", "mine"])
    result = json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())
    assert int((tmp_path / "asked").read_text()) <= 100
    assert result["asked_of_services"]["queries"] <= 100


PAID = """
import torch
from pathlib import Path

class Paid:
    class_names, image_size = ["x", "y", "z"], 16

    def query(self, images):
        asked = Path(__file__).with_name("asked")
        asked.write_text(str(len(images) + (int(asked.read_text()) if asked.is_file() else 0)))
        return images.mean((2, 3)).softmax(1)

def make():
    return [Paid()]
"""


@pytest.mark.parametrize("table", ["SHARED_DEFAULTS", "QUICK"])
def test_a_value_for_a_flag_that_there_is_not(
    table: str, flags_for: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FREE, table, {**getattr(FREE, table), "epochz": 3})
    with pytest.raises(UserError, match=r"FREE has a value for 'epochz', which is no flag \(did you mean epochs\?\)"):
        main.main(flags_for("free"))
