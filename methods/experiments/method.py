"""The contract: a paper only trains; finding, wiring, validating, evaluating and keeping are its experiment's."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from methods.experiments.settings import Setting
from methods.teachers.pool import TeacherPool
from utils.errors import UserError
from utils.images import Grid
from utils.metrics import Stopwatch


class Method:
    """One paper, built from things: its flags, a pool of teachers, and the spec of what is to be trained.

    PAPER: what to cite. SHARED_DEFAULTS: the values of shared flags that the paper's scripts type; SETTINGS: those that depend
    on others; QUICK: those of a run that people can wait for (--settings quick). STATE: the attributes that a checkpoint
    must hold; each has `state_dict` and `load_state_dict`. TRAINS: whether anything is trained at all.
    """

    TASK: ClassVar[str]
    PAPER: ClassVar[str] = ""
    SHARED_DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    SETTINGS: ClassVar[tuple[Setting, ...]] = ()
    QUICK: ClassVar[Mapping[str, Any]] = {}
    STATE: ClassVar[tuple[str, ...]] = ()
    TRAINS: ClassVar[bool] = True

    def __init__(self, args: argparse.Namespace, teachers: TeacherPool, spec: Any) -> None:
        self.args, self.teachers, self.spec = args, teachers, spec
        self.device = teachers.device
        self.clock = Stopwatch(self.device)

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        """Flags of this method alone."""

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        """Fill what depends on other flags; raise `UserError` for values that contradict each other."""

    def prepare(self, folder: Path) -> str:
        """Work before the first iteration, done again on resuming; may write for people into the run directory.

        Returns what is worth saying about it.
        """
        return ""

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One iteration, counted from 0; returns the numbers to log."""
        raise NotImplementedError

    def pictures(self) -> dict[str, Grid]:
        """Images worth looking at now, by name, in rows."""
        return {}

    def summary(self) -> dict[str, Any]:
        """What the result says of the method beside scores and times.

        inversion_of_one_teacher: images and steps; asked_of_services: what `Meter.report` says; examined: what must be
        said about how scores came about.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("clock", *self.STATE)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `UserError` for the state of a run that an earlier version of the program began."""
        missing = [name for name in self.STATE if name not in state]
        if missing:
            raise UserError(
                f"this run's last.pt has no {missing[0]!r}: an earlier version of the program made it, and this one cannot go "
                "on with it; start the run anew (python -m methods.predict still takes its best.pt)"
            )
        for name in ("clock", *self.STATE):
            getattr(self, name).load_state_dict(state[name])
