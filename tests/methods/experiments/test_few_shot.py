import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import main
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
