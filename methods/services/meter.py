"""What services are asked: counted, limited, written down before it is sent."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from utils.errors import BudgetSpent

WAITING = "waiting for services"  # as the report calls it
LEDGER = "asked.jsonl"  # in a run's folder: a line for each request that left for a service behind HTTP


@dataclass
class Meter:
    """What was asked: images (`queries`) and calls. `budget` limits the images; `watch` takes the time of waiting.

    `sent` counts the images of every request that left for a service behind HTTP, the repeated ones too; where the meter
    has a ledger, those of earlier processes of the run as well. Neither count exceeds the budget.
    """

    budget: int | None = None
    watch: Callable[[str], AbstractContextManager[None]] = lambda purpose: nullcontext()
    queries: int = 0
    calls: int = 0
    sent: int = 0
    ledger: Path | None = None
    _one_at_a_time: Lock = field(default_factory=Lock, repr=False, compare=False)

    def keep(self, folder: Path) -> "Meter":
        """Write down in a run's folder what is sent from now on; what was sent before counts."""
        self.ledger = folder / LEDGER
        if self.ledger.is_file():
            self.sent = max(self.sent, _sent_before(self.ledger))
            text = self.ledger.read_bytes()
            if text and not text.endswith(b"\n"):  # of a process that was killed while it wrote
                with self.ledger.open("ab") as file:
                    file.write(b"\n")
        return self

    @contextmanager
    def charge(self, images: int, calls: int = 1, waits: bool = True) -> Iterator[None]:
        """Count the block, once it has succeeded. Raises `BudgetSpent` instead if it would exceed the budget."""
        self._check(self.queries, images)
        with self.watch(WAITING) if waits else nullcontext():
            yield
        self.queries += images
        self.calls += calls

    def send(self, images: int, about: str, limited: bool = True) -> None:
        """Write down that a request leaves. Raises `BudgetSpent` if it would exceed the budget; any thread may call it."""
        with self._one_at_a_time:
            if limited:
                self._check(self.sent, images)
            if self.ledger is not None:
                with self.ledger.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"images": images, "about": about}) + "\n")
            self.sent += images

    def report(self, images: int | None = None, price_per_1000: float | None = None, servers: bool = False) -> dict[str, float]:
        """For the result: what was asked, for the `images` that were recovered or drawn, and what it cost.

        Where there are `servers`, what is paid for is what was sent; answers that were kept cost nothing.
        """
        found: dict[str, float] = {"queries": self.queries, "calls": self.calls}
        if images is not None:
            found["queries_per_image"] = self.queries / max(1, images)
        if servers:
            found["sent"] = self.sent
        if price_per_1000 is not None:
            found["price"] = price_per_1000 * (self.sent if servers else self.queries) / 1000
        return found

    def _check(self, before: int, images: int) -> None:
        if self.budget is not None and before + images > self.budget:
            raise BudgetSpent(f"--query_budget {self.budget} is spent: {before} queries were made")

    def state_dict(self) -> dict[str, int]:
        return {"queries": self.queries, "calls": self.calls, "sent": self.sent}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.queries, self.calls = state["queries"], state["calls"]
        self.sent = max(self.sent, state.get("sent", 0))


def _sent_before(ledger: Path) -> int:
    total = 0
    for line in ledger.read_text(encoding="utf-8").splitlines():
        try:
            total += int(json.loads(line)["images"])
        except (ValueError, KeyError, TypeError):  # the last line of a process that was killed
            continue
    return total
