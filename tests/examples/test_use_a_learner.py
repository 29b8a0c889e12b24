from collections.abc import Callable
from pathlib import Path

import pytest

import main
from examples import use_a_learner


def test_the_example_runs(flags_for: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for("random"), "--no_floors", "--run_name", "mine"])
    capsys.readouterr()
    use_a_learner.main([str(tmp_path / "runs" / "mine")])
    right = int(capsys.readouterr().out.split(" of 100")[0])
    assert 0 <= right <= 100
