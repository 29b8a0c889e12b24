import json
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import growth
from main import parse_args
from methods.teachers.manifest import read_manifest


def test_every_run_of_it_parses() -> None:
    for method, flags in growth.METHODS.items():
        typed = f"--method {method} {growth.FEW} {flags.format(updates=4)} --teachers zoo.csv"
        assert parse_args(typed.split()).method == method


def test_stand_ins_know_all_classes_together(tmp_path: Path) -> None:
    rows = read_manifest(growth.stand_ins(tmp_path, 4, 18, 16))
    assert len({key for row in rows for key in row.class_keys}) == 18


@pytest.mark.slow
def test_it_measures_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "USUAL", {"teachers": 14, "classes": 64, "pixels": 16, "episodes": 2})
    monkeypatch.setattr(growth, "MORE", {"episodes": (2, 4)})
    growth.main(["--only", "purer", "--out", str(tmp_path)])
    lines = json.loads((tmp_path / "growth.json").read_text())["lines"]
    assert [line["episodes"] for line in lines] == [2, 4]
    assert all(line["iteration"] > 0 and line["megabytes"] > 100 for line in lines)
    assert all(one.keys() == other.keys() for one, other in pairwise(lines))
    assert (tmp_path / "growth.png").is_file()
