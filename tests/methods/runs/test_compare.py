from collections.abc import Callable
from pathlib import Path

import pytest

import main
from methods.runs import compare
from methods.runs.scores import Run, read_run
from utils.errors import UserError

Flags = Callable[..., list[str]]


def test_runs_stand_side_by_side(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, picture = tmp_path / "runs", tmp_path / "beside.png"
    main.main([*flags_for("free", 1), "--run_name", "one"])
    main.main([*flags_for("chorus", 1), "--run_name", "two"])
    main.main([*flags_for("free", 1), "--num_sup_test", "2", "--run_name", "other", "--no_floors"])
    capsys.readouterr()
    for _ in range(2):  # a plot is replaced, and nothing else
        compare.main([str(runs / "one"), str(runs / "two"), "--out", str(picture)])
    for name, words in (("one/best.pt", "no name of a picture"), ("photo.png", "is no plot")):
        (runs / "photo.png").write_bytes(b"\x89PNG somebody's")
        with pytest.raises(UserError, match=words):
            compare.main([str(runs / "one"), str(runs / "two"), "--out", str(runs / name)])
    said = capsys.readouterr().out
    assert all(word in said for word in ("one frozen teacher (mean)", "all 2 frozen teachers", "one is ", "two is "))
    assert picture.stat().st_size > 5000
    with pytest.raises(UserError, match="they do not compare"):
        compare.main([str(runs / "one"), str(runs / "other")])
    assert "nothing to compare with" in compare.verdict(read_run(runs / "other"))


@pytest.mark.parametrize(
    ("above", "words"), [(-0.2, "20.0 ± 1.0 below"), (0.2, "20.0 ± 1.0 above"), (0.005, r"level with (+0.5 ± 1.0)")]
)
def test_a_verdict_is_by_the_paired_interval(above: float, words: str, tmp_path: Path) -> None:
    scores = {"cub": {"mean": 0.5, "half_width": 0.01, "above": above, "above_half_width": 0.01}}
    result = {"method": "free", "yardsticks": {"one frozen teacher (mean)": scores, "raw pixels": scores}}
    said = compare.verdict(compare.Run(tmp_path / "mine", {}, [], result))
    assert said.startswith(f"mine is {words} one frozen teacher (mean)")
    assert ("has not paid" in said) == (above < -0.01)


def test_of_several_sets_each_has_its_own_floors(tmp_path: Path) -> None:
    def scores(first: float, second: float) -> dict:
        return {
            name: {"mean": mean, "half_width": 0.01, "above": 0.2, "above_half_width": 0.01}
            for name, mean in (("cub", first), ("cifar100", second))
        }

    result = {"way": 5, "accuracy": scores(0.5, 0.4), "yardsticks": {"one frozen teacher (mean)": scores(0.3, 0.2)}}
    run = compare.Run(tmp_path / "mine", {}, [], result)
    drawn, marks = compare.lines_of([run])
    assert [(line.label, round(line.value)) for line in drawn] == [("mine on cifar100", 40), ("mine on cub", 50)]
    floors = {line.label: round(line.value) for line in marks}
    floor = "one frozen teacher (mean) on"
    assert floors == {"chance": 20, f"{floor} cifar100": 20, f"{floor} cub": 30}
    assert "above one frozen teacher (mean) on cub and " in compare.verdict(run)


def test_floors_of_two_pools_are_two_marks(tmp_path: Path) -> None:
    score = {"letters": {"mean": 0.5, "half_width": 0.01}}
    runs = [
        Run(tmp_path / name, {}, [], {"way": 5, "accuracy": score, "yardsticks": {"all 2 frozen teachers": floor}})
        for name, floor in (("a", score), ("b", score), ("c", {"letters": {"mean": 0.6, "half_width": 0.01}}))
    ]
    _, marks = compare.lines_of(runs)
    assert [mark.label for mark in marks] == ["chance", "all 2 frozen teachers", "all 2 frozen teachers (of c)"]


def test_other_queries_are_another_exam(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("random"), "--no_floors", "--run_name", "one"])
    main.main([*flags_for("random"), "--no_floors", "--num_qur_test", "3", "--run_name", "two"])
    with pytest.raises(UserError, match="they do not compare"):
        compare.main([str(tmp_path / "runs" / "one"), str(tmp_path / "runs" / "two"), "--out", str(tmp_path / "p.png")])
