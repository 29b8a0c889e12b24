from collections.abc import Callable
from pathlib import Path

import pytest

from examples.runs import check_study, result_of
from utils.errors import UserError


def test_a_run_of_other_flags_is_not_taken_for_this_one(flags_for: Callable[..., list[str]], tmp_path: Path) -> None:
    flags = [*flags_for("random"), "--no_floors"]
    first = result_of(tmp_path / "study", "mine", flags)
    written = (tmp_path / "study" / "mine" / "result.json").stat().st_mtime_ns
    assert result_of(tmp_path / "study", "mine", [*flags, "--threads", "1"]) == first
    assert (tmp_path / "study" / "mine" / "result.json").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="was made with another --shot_test"):
        result_of(tmp_path / "study", "mine", [*flags, "--num_sup_test", "2"])


def test_a_study_of_other_things_is_another_one(tmp_path: Path) -> None:
    for _ in range(2):
        check_study(tmp_path / "study", {"teachers": ["a"], "epochs": 3})
    with pytest.raises(UserError, match="give this one another --out"):
        check_study(tmp_path / "study", {"teachers": ["b"], "epochs": 3})
