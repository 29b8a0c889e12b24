"""Both ways of every hot path must compute the same; how fast they are is not tested."""

import json
from pathlib import Path

import pytest

from benchmarks import run


@pytest.mark.slow
def test_every_case_runs_and_both_ways_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["conv4, maml, 1-shot", "conv4, anil", "episode ", "TGR", "zeroth", "memory"]
    run.main(["--quick", "--only", *chosen, "--out", str(tmp_path / "found.json")])
    cases = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert len(cases) >= 8
    for name, line in cases.items():
        assert line["ours"] > 0
        assert line["papers"] > 0
        # float64 for exact algebra; estimated gradients are differences of float32 losses
        assert line["error"] is None or line["error"] < (2e-3 if "zeroth" in name else 1e-9), name
    assert "papers' way" in capsys.readouterr().out
