import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from methods.runs import page as report_page
from utils.errors import UserError
from utils.images import save_grid


def write_run(out: Path, name: str, mean: float, finished: bool = True, **flags: object) -> Path:
    """A run directory as main.py leaves it, in small."""
    folder = out / name
    (folder / "images").mkdir(parents=True)
    given = {"method": "free", "seed": 0, "episode_test": 4, "out": str(out), "outer_lr": 0.1, **flags}
    (folder / "args.json").write_text(json.dumps({"flags": given}))
    looks = [{"iteration": i, "seconds": 60.0 * i, "val": mean - 0.1 / i, "val_half_width": 0.01} for i in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"iteration": 0, "loss": 1.0}, *looks])))
    for number in range(1, 8):
        save_grid(torch.full((4, 3, 8, 8), 30 * number, dtype=torch.uint8), folder / "images" / f"memory_{number:06d}.png", 2)
    if finished:
        score = {"mean": mean, "half_width": 0.02}
        result = {
            "method": "free", "dataset": "letters", "testdataset": None, "evaluated": True, "way": 5, "shot": 1,
            "accuracy": {"letters": score}, "seconds": {"generation": 90.0, "total": 200.0},
            "teacher_accuracies": [0.9, None, 0.7],
            "yardsticks": {
                "raw <pixels>": {"letters": {"mean": 0.25, "half_width": 0.01}},
                "real data (ceiling)": {"letters": {"mean": 0.9, "half_width": 0.01}},
            },
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_the_table_stands_between_floors_and_ceiling_and_sums_up_seeds(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 0.5), write_run(tmp_path, "b", 0.4, seed=1), write_run(tmp_path, "c", 0.6, outer_lr=1)]
    table = report_page.results_table([report_page.read_run(run) for run in runs])
    assert table.what.tolist() == [
        "raw <pixels>", "b", "free: mean and spread of 2 seeds", "a", "c", "real data (ceiling)",
    ]  # fmt: skip
    assert table.letters.tolist()[2:4] == ["45.00 (s 7.07)", "50.00 ± 2.00"]


def test_a_seed_counts_once_and_a_floor_belongs_to_its_run(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 0.5), write_run(tmp_path, "b", 0.4, seed=1), write_run(tmp_path, "c", 0.6)]
    other = json.loads((runs[1] / "result.json").read_text())
    other["yardsticks"]["raw <pixels>"]["letters"]["mean"] = 0.3
    (runs[1] / "result.json").write_text(json.dumps(other))
    table = report_page.results_table([report_page.read_run(run) for run in runs])
    assert "raw <pixels> (of b)" in table.what.tolist()
    assert "free: mean and spread of 2 seeds" in table.what.tolist()
    assert table[table.what.str.contains("spread")].letters.tolist() == ["50.00 (s 14.14)"]  # of b and the later run of seed 0


def test_what_was_scored_again_is_there(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 0.5)
    again = json.loads((run / "result.json").read_text()) | {
        "shot": 5,
        "accuracy": {"letters": {"mean": 0.7, "half_width": 0.01}},
    }
    (run / "evaluate-5w5s.json").write_text(json.dumps(again))
    page, markdown, _ = report_page.build([report_page.read_run(run)])
    assert "5-way 5-shot" in page
    assert "| a, scored again | 70.00 ± 1.00 |" in markdown


def test_the_page_holds_everything_itself(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "first", 0.5)
    write_run(tmp_path / "runs", "second", 0.6, outer_lr=0.5)
    write_run(tmp_path / "runs", "going-on", 0.6, finished=False)
    (tmp_path / "runs" / "notes.txt").write_text("passed over")
    report_page.main([*map(str, (tmp_path / "runs").iterdir()), "--out", str(tmp_path / "all" / "page.html")])
    page = (tmp_path / "all" / "page.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # no file beside it is needed
    assert "raw &lt;pixels&gt;" in page  # escaped
    assert "50.00 ± 2.00" in page
    assert "unfinished, 4 iterations" in page
    assert "2 teachers, held-out accuracy 80.0 % (70.0 to 90.0)" in page
    assert "generation 90.0 s" in page
    assert page.count("memory_") >= 3 * 4
    assert {"memory_000001", "memory_000007"} <= set(re.findall(r"memory_\d+", page))
    assert "outer_lr" in page
    assert "| second | 60.00 ± 2.00 |" in (tmp_path / "all" / "page.md").read_text()
    found = pd.read_csv(tmp_path / "all" / "page.csv")
    assert found.what.tolist() == ["raw <pixels>", "first", "second", "real data (ceiling)"]


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        report_page.main([str(tmp_path), "--out", str(tmp_path / "x.html")])
    folder = write_run(tmp_path, "bad", 0.5)
    (folder / "result.json").write_text("{half")
    with pytest.raises(UserError, match="damaged"):
        report_page.main([str(folder), "--out", str(tmp_path / "x.html")])


def test_runs_alone_or_unfinished_make_a_page_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "x", 0.5, finished=False)
    (folder / "metrics.jsonl").unlink()
    report_page.main([str(folder), "--out", str(tmp_path / "x.html")])
    assert "No run has been evaluated." in (tmp_path / "x.html").read_text()
