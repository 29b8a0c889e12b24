from pathlib import Path

import pytest

from methods.services.meter import LEDGER, Meter
from utils.errors import BudgetSpent


def test_queries_are_counted_and_the_budget_is_never_exceeded() -> None:
    meter = Meter(budget=7)
    for _ in range(2):
        with meter.charge(3):
            pass
    assert (meter.queries, meter.calls) == (6, 2)
    with pytest.raises(BudgetSpent, match="7"), meter.charge(3):
        pass
    assert meter.queries == 6
    again = Meter(budget=7)
    again.load_state_dict(meter.state_dict())
    assert again == meter


def test_what_leaves_is_written_down_before_it_does(tmp_path: Path) -> None:
    """A process that dies after a checkpoint leaves a ledger; what the checkpoint does not know of counts all the same."""
    meter = Meter(budget=10).keep(tmp_path)
    meter.send(4, "cats 01")
    saved = meter.state_dict()
    meter.send(4, "cats 02")
    assert len((tmp_path / LEDGER).read_text().splitlines()) == 2
    with (tmp_path / LEDGER).open("a") as file:
        file.write('{"images": 99')  # killed while it wrote
    resumed = Meter(budget=10).keep(tmp_path)
    resumed.load_state_dict(saved)
    assert resumed.sent == 8
    with pytest.raises(BudgetSpent):
        resumed.send(3, "cats 03")
    resumed.send(2, "cats 03")
    assert Meter().keep(tmp_path).sent == 10  # the line that was cut off has not swallowed the next


def test_the_report_says_what_it_cost(tmp_path: Path) -> None:
    local, remote = Meter(queries=500, calls=2), Meter(queries=500, calls=2).keep(tmp_path)
    remote.send(300, "some were kept")
    assert local.report(10, None) == {"queries": 500, "calls": 2, "queries_per_image": 50}
    assert local.report(10, 4.0)["price"] == 2.0
    assert remote.report(10, 4.0, servers=True) == {
        "queries": 500,
        "calls": 2,
        "queries_per_image": 50,
        "sent": 300,
        "price": 1.2,
    }
