import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from methods.runs import page as report_page
from methods.runs.scores import as_table, read_run, side_by_side
from utils.errors import UserError
from utils.images import Grid, save_grid


def write_run(out: Path, name: str, mean: float, finished: bool = True, **flags: object) -> Path:
    """A run directory as main.py leaves it, in small."""
    folder = out / name
    (folder / "images").mkdir(parents=True)
    given = {"method": "free", "seed": 0, "episode_test": 4, "out": str(out), "outer_lr": 0.1, **flags}
    (folder / "args.json").write_text(json.dumps({"flags": given}))
    looks = [
        {"iteration": i, "seconds": 60.0 * i, "meta_val/letters": mean - 0.1 / i, "val": mean - 0.1 / i, "val_half_width": 0.01}
        for i in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"iteration": 0, "loss": 1.0}, *looks])))
    for number in range(1, 8):
        grid = Grid(torch.full((4, 3, 8, 8), 30 * number, dtype=torch.uint8), 2, ["owl", "<wren>"])
        save_grid(grid, folder / "images" / f"memory_{number:06d}.png")
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
    table = as_table(side_by_side(read_run(run) for run in runs))
    assert table.what.tolist() == [
        "raw <pixels>", "b", "free: mean and spread of 2 seeds", "a", "c", "real data (ceiling)",
    ]  # fmt: skip
    assert table.letters.tolist()[2:4] == ["45.00 (s 7.07)", "50.00 ± 2.00"]
    assert table.note.tolist() == [""] * 4 + ["best", ""]


def test_a_seed_counts_once_and_a_floor_belongs_to_its_run(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 0.5), write_run(tmp_path, "b", 0.4, seed=1), write_run(tmp_path, "c", 0.6)]
    other = json.loads((runs[1] / "result.json").read_text())
    other["yardsticks"]["raw <pixels>"]["letters"]["mean"] = 0.3
    (runs[1] / "result.json").write_text(json.dumps(other))
    table = as_table(side_by_side(read_run(run) for run in runs))
    assert "raw <pixels> (of b)" in table.what.tolist()
    assert "free: mean and spread of 2 seeds" in table.what.tolist()
    assert table[table.what.str.contains("spread")].letters.tolist() == ["50.00 (s 14.14)"]  # of b and the later run of seed 0


def test_what_was_scored_again_is_there(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 0.5)
    again = json.loads((run / "result.json").read_text()) | {
        "shot": 5,
        "episodes": {"letters": [0.7] * 7},
        "accuracy": {"letters": {"mean": 0.7, "half_width": 0.01}},
    }
    (run / "evaluate-5w5s.json").write_text(json.dumps(again))
    page, markdown, _ = report_page.build([read_run(run)])
    assert "5-way 5-shot, 7 episodes" in page
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
    assert "| second | 60.00 ± 2.00 | best |" in (tmp_path / "all" / "page.md").read_text()
    found = pd.read_csv(tmp_path / "all" / "page.csv")
    assert found.what.tolist() == ["raw <pixels>", "first", "second", "real data (ceiling)"]
    assert found.kind.tolist() == ["floor", "run", "run", "ceiling"]
    assert found.accuracy.tolist() == [25.0, 50.0, 60.0, 90.0]
    assert found.half_width.tolist() == [1.0, 2.0, 2.0, 1.0]
    assert "its rows: owl, &lt;wren&gt;" in page


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


def test_a_ceiling_whose_run_is_there_stands_there_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 0.5), write_run(tmp_path, "real", 0.9)]
    result = json.loads((runs[1] / "result.json").read_text())
    result["accuracy"]["letters"] = result["yardsticks"]["real data (ceiling)"]["letters"]
    (runs[1] / "result.json").write_text(json.dumps(result))
    lines = side_by_side(map(read_run, runs))
    assert [line.what for line in lines] == ["raw <pixels>", "a", "real"]


def test_what_is_below_a_floor_is_marked(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "good", 0.5), write_run(tmp_path, "bad", 0.2)]
    for run, above in zip(runs, (0.25, -0.05), strict=True):
        result = json.loads((run / "result.json").read_text())
        score = {"mean": 0.25, "half_width": 0.01, "above": above, "above_half_width": 0.02}
        result["yardsticks"]["raw pixels, nearest class mean"] = {"letters": score}
        (run / "result.json").write_text(json.dumps(result))
    lines = {line.what: line.note for line in side_by_side(map(read_run, runs)) if line.kind == "run"}
    assert lines == {"bad": "below raw pixels, nearest class mean", "good": "best"}


def test_a_chart_has_what_it_needs_in_order(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 0.5), write_run(tmp_path, "b", 0.6)]
    drawn = report_page.chart(side_by_side(map(read_run, runs)), "letters", 5)
    places = [mark["x"] for mark in drawn["marks"]]
    assert [mark["label"] for mark in drawn["marks"]] == ["chance", "raw <pixels>", "real data (ceiling)"]
    assert places == sorted(places)
    first, second = drawn["dots"]
    assert places[0] < first["x0"] < first["x"] < first["x1"] < second["x"] < places[-1]
    width = (first["x1"] - first["x0"]) / (second["x"] - first["x"])
    assert width == pytest.approx(4 / 10, abs=0.02)  # an interval of 4 points, dots 10 points apart


def test_a_single_look_gives_no_curve(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", 0.5)
    assert [curve["said"] for curve in report_page.curves([read_run(folder)])] == [
        "meta_val/letters: accuracy at each validation of a"
    ]
    first = (folder / "metrics.jsonl").read_text().splitlines()[:2]
    (folder / "metrics.jsonl").write_text("\n".join(first))
    assert report_page.curves([read_run(folder)]) == []


def test_settings_differ_in_words(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", 0.5, augment=True), write_run(tmp_path, "b", 0.6, augment=False, outer_lr=0.2)]
    found = report_page.differing_flags([read_run(run) for run in runs])
    assert found.setting.tolist() == ["augment", "outer_lr"]
    assert found.a.tolist() == ["on", "0.1"]
    assert "learning rate of the outer loop" in found["what it is"].tolist()[1]


def test_code_that_a_run_names_is_not_run(tmp_path: Path) -> None:
    code, told = tmp_path / "evil.py", tmp_path / "told"
    code.write_text(f"import pathlib\npathlib.Path({str(told)!r}).touch()\nclass Mine: ...\n")
    runs = [write_run(tmp_path, name, 0.5, method=f"{code}:Mine", outer_lr=lr) for name, lr in (("a", 0.1), ("b", 0.2))]
    assert report_page.differing_flags([read_run(run) for run in runs]).setting.tolist() == ["outer_lr"]
    assert not told.exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize(("scheme", "background"), [(1, 255), (0, 22)])
def test_in_a_browser(scheme: int, background: int, tmp_path: Path) -> None:
    """Without an error, in both colour schemes, and no wider than the narrowest window that the browser opens."""
    runs = [read_run(write_run(tmp_path, name, mean)) for name, mean in (("a-run-with-quite-a-long-name", 0.5), ("b", 0.6))]
    page, _, _ = report_page.build(runs)
    measured = "<script>document.title = 'width ' + document.documentElement.scrollWidth</script></body>"
    (tmp_path / "page.html").write_text(page.replace("</body>", measured))
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--hide-scrollbars",
               f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]  # fmt: skip
    url = (tmp_path / "page.html").as_uri()
    drawn = subprocess.run(
        [*browser, "--window-size=900,1400", f"--screenshot={tmp_path / 'page.png'}", url],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    assert "CONSOLE" not in drawn.stderr
    with Image.open(tmp_path / "page.png") as picture:
        pixels = picture.convert("L")
        assert pixels.getpixel((2, 2)) == background
        assert len(set(pixels.getdata())) > 50  # drawn, and not one colour
    dom = subprocess.run(
        [*browser, "--window-size=500,900", "--dump-dom", url], capture_output=True, text=True, check=True, timeout=600
    )
    assert int(re.search(r"<title>width (\d+)", dom.stdout)[1]) <= 500


def test_files_that_no_page_came_with_are_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 0.5)
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.md is there already and belongs to no page"):
        report_page.main([str(run), "--out", str(tmp_path / "notes.html")])
    assert (tmp_path / "notes.md").read_text() == "mine"
    for _ in range(2):
        report_page.main([str(run), "--out", str(tmp_path / "page.html")])


def test_scores_that_were_typed_otherwise_are_no_seeds_of_one(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, name, value) for name, value in (("a", 0.5), ("b", 0.6))]
    for number, run in enumerate(runs):
        result = json.loads((run / "result.json").read_text()) | {"changed": {"readout": [str(number)]}}
        (run / "result.json").write_text(json.dumps(result))
    assert not [line for line in side_by_side(map(read_run, runs)) if line.kind == "seeds"]


def test_pictures_are_in_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 0.5)
    (run / "images").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), (200, 0, 0)).save(run / "images" / "drawn_00001.png")
    page, _, _ = report_page.build([read_run(run)])
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert found
    assert all(base64.b64decode(content).startswith(b"\x89PNG") for content in found)


@pytest.mark.parametrize(
    "text", ['{"evaluated": true}', '{"evaluated": true, "method": "a", "accuracy": {}, "yardsticks": {}}', "[3]", "3"]
)
def test_foreign_results_are_no_runs(text: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, "mine", 0.5)
    (run / "result.json").write_text(text)
    with pytest.raises(UserError, match=r"result\.json is"):
        read_run(run)


def test_a_damaged_evaluation_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "mine", 0.5)
    (run / "evaluate-5w1s.json").write_text("")
    assert read_run(run).again == []
    assert "evaluate-5w1s.json is damaged" in capsys.readouterr().err
