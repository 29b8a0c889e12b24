import argparse
from typing import Any

import pytest

from methods.runs.few_shot_result import warnings


def content(above: float, half_width: float = 0.01) -> dict[str, Any]:
    score = {"mean": 0.3, "half_width": 0.01, "above": above, "above_half_width": half_width}
    return {"yardsticks": {"raw pixels, nearest class mean": {"cub": score}, "random learner, adapted": {"cub": score}}}


@pytest.mark.parametrize(("above", "warned"), [(-0.02, True), (-0.005, False), (0.1, False)])
def test_a_score_below_the_pixels_says_so(above: float, warned: bool) -> None:
    """Only where the paired interval lies below 0; an untrained learner is no floor that must be passed to be of use."""
    said = warnings(argparse.Namespace(method="free"), content(above))
    assert [line.startswith("note: free is below raw pixels, nearest class mean on cub") for line in said] == [True] * warned


def test_where_nothing_is_paired_nothing_is_said() -> None:
    assert warnings(argparse.Namespace(method="free"), {"yardsticks": {"raw pixels": {"cub": {"mean": 0.9}}}}) == []
