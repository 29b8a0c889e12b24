"""Numbers: means with intervals, paired comparison, waiting for a better one, time by purpose."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Score:
    """Accuracies of single episodes (0..1), with their mean and 95 % half-width 1.96 s / sqrt(n), s with n - 1."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def half_width(self) -> float:
        if len(self.values) < 2:
            return math.inf
        mean = self.mean
        variance = sum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1)
        return 1.96 * math.sqrt(variance / len(self.values))

    def numbers(self) -> dict[str, float]:
        """What a result keeps of it."""
        return {"mean": self.mean, "half_width": self.half_width}

    def minus(self, other: "Score") -> "Score":
        """The paired difference over the same episodes; one beats the other when its interval excludes 0."""
        return Score([a - b for a, b in zip(self.values, other.values, strict=True)])


ROUNDING = 1e-6  # by which accuracies of the same hits differ when they are added up in another order


@dataclass
class Patience:
    """Counts the accuracies in a row that were no better than the best before them, rounding aside."""

    limit: int
    best: float = -math.inf
    waited: int = 0

    def note(self, value: float) -> bool:
        """Take in a value; whether `limit` in a row were no better. Then the best is forgotten and counting starts again."""
        self.best, self.waited = (value, 0) if value > self.best + ROUNDING else (self.best, self.waited + 1)
        if self.waited < self.limit:
            return False
        self.best, self.waited = -math.inf, 0
        return True

    @property
    def anew(self) -> bool:
        """Whether counting has just started: at first, and after it had ended."""
        return self.best == -math.inf

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best, self.waited = state["best"], int(state["waited"])


@dataclass
class Stopwatch:
    """Seconds spent by purpose; kept across resumed runs."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, purpose: str) -> Iterator[None]:
        """Add the time of the block to `purpose`."""
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds[purpose] = self.seconds.get(purpose, 0.0) + time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def state_dict(self) -> dict[str, float]:
        return dict(self.seconds)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.seconds = dict(state)
