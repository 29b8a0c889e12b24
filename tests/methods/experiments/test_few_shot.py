import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from methods import get_method
from methods.experiments.few_shot import FewShotExperiment
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
    plain = json.loads((run / "evaluate-3w1s.json").read_text())
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
    with pytest.raises(UserError, match="of which nothing can be kept"):
        FewShotClassifier.load(run)
    main.main(["--evaluate", str(run), "--allow_code", place])
