import pytest
from mutations import KINDS, try_kind

TRIALS = 40  # of each kind; `python tests/mutations.py` makes as many as one likes


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_gives_the_same_or_is_refused_by_name(kind: str) -> None:
    tally = try_kind(kind, TRIALS)
    assert tally.wrong == []
    assert sum(tally.counts.values()) == TRIALS
    assert tally.counts["same"] < TRIALS or kind == "cache of images"  # the damage is real
