import json
from collections.abc import Callable
from pathlib import Path

import pytest

import main
from methods.runs import figures
from utils.errors import UserError

DOCS = Path(__file__).resolve().parents[3] / "docs"
Flags = Callable[..., list[str]]


def test_the_page_of_results_is_that_of_its_figures() -> None:
    kept = json.loads((DOCS / "figures.json").read_text(encoding="utf-8"))
    assert figures.page_of(kept) == (DOCS / "results.md").read_text(encoding="utf-8")
    assert figures.merged(kept, []) == kept
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert figures.with_front(readme, figures.front_of(kept)) == readme


def test_runs_become_one_line_a_command(flags_for: Flags, tmp_path: Path) -> None:
    """Two seeds of one command, run anew once, and another command."""
    for name, seed, shot in (("a", "0", "1"), ("b", "1", "1"), ("c", "0", "5"), ("a2", "0", "1")):
        main.main([*flags_for("free"), "--num_sup_train", shot, "--seed", seed, "--run_name", name])
    runs = [tmp_path / "runs" / name for name in ("a", "b", "c")]
    figures.main([*map(str, runs), "--docs", str(tmp_path)])
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert len(kept) == 3
    assert all("--seed" not in figure["command"] and str(tmp_path) not in figure["command"] for figure in kept)
    page = (tmp_path / "results.md").read_text()
    one = next(line for line in page.splitlines() if line.startswith("| **free") and "(s " in line)
    values = [100 * json.loads((run / "result.json").read_text())["accuracy"]["cifar100"]["mean"] for run in runs[:2]]
    assert f"| {sum(values) / 2:.2f} (s " in one
    assert "| 0, 1 |" in one
    assert page.count("## cifar100") == 2
    assert page.count("*random learner, adapted (maml)*") == 2
    main.main(["--evaluate", str(tmp_path / "runs" / "a2"), "--num_sup_test", "2"])
    figures.main([str(tmp_path / "runs" / "a2"), "--docs", str(tmp_path)])
    again = json.loads((tmp_path / "figures.json").read_text())
    assert len(again) == 4  # the run in place of an earlier one, and what it scored again
    assert sum("--evaluate RUN --way_test 3 --num_sup_test 2" in figure["command"] for figure in again) == 1


def test_what_was_typed_to_score_again_is_told(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("free"), "--metalearner", "protonet", "--run_name", "mine"])
    again = ["--readout", "whitened", "mirror", "--testdataset", "glyphs"]
    main.main(["--evaluate", str(tmp_path / "runs" / "mine"), *again])
    figures.main([str(tmp_path / "runs" / "mine"), "--docs", str(tmp_path)])
    first, other = json.loads((tmp_path / "figures.json").read_text())
    then = "; python main.py --evaluate RUN --way_test 3 --num_sup_test 1 "
    assert other["command"] == first["command"] + then + " ".join(again)


def test_a_run_without_a_score_is_refused(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("free"), "--no_floors", "--run_name", "mine"])
    (tmp_path / "runs" / "mine" / "result.json").unlink()
    with pytest.raises(UserError, match="no finished run with a score"):
        figures.main([str(tmp_path / "runs" / "mine"), "--docs", str(tmp_path)])
    assert not (tmp_path / "figures.json").exists()


def test_of_a_flag_that_was_typed_anew_the_last_counts() -> None:
    typed = "--method real --epochs 9 --teachers a.csv --run-name x --teachers b.csv --lr=2 --epochs 20 --lr 3 --seeds 0 5"
    assert (
        figures.command_of(typed.split(), "real")
        == "python main.py --method real --teachers a.csv --teachers b.csv --epochs 20 --lr 3"
    )
    assert figures.command_of(["--method=real", "--lr=3"], "real") == "python main.py --method real --lr 3"
    assert figures.command_of(["--config", "c.yaml"], "real").startswith("python main.py --method real")


def test_students_have_a_table_of_their_own(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("fast"), "--g_steps", "2", "--run_name", "mine"])
    main.main(["--evaluate", str(tmp_path / "runs" / "mine")])  # a whole set has one exam: nothing new
    figures.main([str(tmp_path / "runs" / "mine"), "--docs", str(tmp_path)])
    (kept,) = json.loads((tmp_path / "figures.json").read_text())
    page = (tmp_path / "results.md").read_text()
    assert f"| **fast: {' to '.join(kept['networks'])}, g_steps 2** | " in page
    assert f" {kept['call']['images']} x 2 | " in page
    assert f"Classes: {', '.join(kept['class_names'])}." in page
    assert f"*its teacher (ceiling): {kept['networks'][0]}*" in page
    header, line, *rows = [row for row in page.splitlines() if row.startswith("|")]
    assert {row.count("|") for row in (line, *rows)} == {header.count("|")}


def test_floors_of_another_network_or_another_api_are_lines_of_their_own() -> None:
    """And those of another number of images are not."""

    def figure(backbone: str, flags: str, floor: float) -> dict[str, object]:
        score = {"cifar100": {"mean": floor, "half_width": 0.01}}
        return {
            **{"task": "few_shot", "setting": "s", "command": f"python main.py --method chorus {flags}", "seed": 0},
            **{"settings": "paper", "statistics": "fixed", "metalearner": "ncm", "backbone": backbone, "queries": 0},
            **{"seconds": 1.0, "commit": "0", "machine": "m", "accuracy": score},
            "yardsticks": {"random learner, adapted": score, "all 2 frozen teachers, answers alone": score},
        }

    page = figures.page_of(
        [
            figure("conv4", "--num_images 10", 0.2),
            figure("conv4", "--num_images 20", 0.2),
            figure("conv4_64", "", 0.3),
            figure("conv4", "--answers label", 0.4),
        ]
    )
    labels = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| *")]
    floors = [label for label in labels if not label.startswith("**")]
    assert sorted(floors) == [
        "*all 2 frozen teachers, answers alone*",
        "*all 2 frozen teachers, answers alone, answers label*",
        "*random learner, adapted (ncm)*",
        "*random learner, adapted (ncm, conv4, width 64)*",
    ]
