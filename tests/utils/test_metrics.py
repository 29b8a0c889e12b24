import math

import pytest
import torch

from utils.metrics import Patience, Score, Stopwatch


def test_interval_by_hand() -> None:
    score = Score([0.2, 0.4, 0.6])
    assert score.mean == pytest.approx(0.4)
    assert score.half_width == pytest.approx(1.96 * 0.2 / math.sqrt(3))  # s with n - 1 is 0.2
    assert Score([0.5]).half_width == math.inf


def test_paired_difference_is_sharper_than_the_intervals() -> None:
    hard, easy = Score([0.1, 0.5, 0.9]), Score([0.2, 0.6, 1.0])
    difference = easy.minus(hard)
    assert difference.mean == pytest.approx(0.1)
    assert difference.half_width < 1e-9


def test_stopwatch_adds_up_and_goes_on() -> None:
    watch = Stopwatch(torch.device("cpu"))
    with watch("a"):
        pass
    state = watch.state_dict() | {"a": 5.0}
    watch.load_state_dict(state)
    with watch("a"):
        pass
    assert 5.0 < watch.seconds["a"] < 6.0


def test_patience_does_not_take_rounding_for_progress() -> None:
    """1 of 3 hits, added up in two ways, is the same accuracy."""
    patience = Patience(2)
    assert not patience.note(1 / 3)
    assert not patience.note(1 / 3 + 5e-8)
    assert patience.note(1 / 3 - 5e-8)
    assert patience.anew
    assert not patience.note(0.5)
    assert not patience.note(0.5 + 1 / 7500)  # one hit more of 10 episodes of 5 x 150 queries
    assert patience.waited == 0
