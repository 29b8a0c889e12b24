"""The contract between a method and the outer loop."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from utils.metrics import Score, Stopwatch


class Method:
    """One paper. Logging, checkpoints and resuming are not its business (`methods.loop`), nor the report (`methods.report`).

    PAPER: what to cite. SHARED_DEFAULTS: the paper's values of shared flags. STATE: the attributes that a checkpoint
    must hold; each has `state_dict` and `load_state_dict`. EXAM_FLAGS: the method's own flags that concern evaluation
    alone, and so may change with --evaluate.
    """

    TASK: ClassVar[str]
    PAPER: ClassVar[str] = ""
    SHARED_DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    STATE: ClassVar[tuple[str, ...]] = ()
    EXAM_FLAGS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args = args
        self.device = device
        self.clock = Stopwatch(device)

    @classmethod
    def add_shared_args(cls, parser: argparse.ArgumentParser) -> None:
        """Flags of the method's task."""
        raise NotImplementedError

    @staticmethod
    def add_args(group: argparse._ArgumentGroup) -> None:
        """Flags of this method alone."""

    @classmethod
    def finish_args(cls, args: argparse.Namespace) -> None:
        """Fill what depends on other flags; raise `UserError` for values that contradict each other."""

    @classmethod
    def restore_args(cls, args: argparse.Namespace) -> None:
        """Turn what args.json holds as text into what the flags give."""

    @classmethod
    def default_name(cls, args: argparse.Namespace) -> str:
        """A name for the run directory that says what the run is."""
        raise NotImplementedError

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run; 0 for a method that trains nothing."""
        raise NotImplementedError

    @property
    def val_interval(self) -> int:
        """Iterations between looks."""
        raise NotImplementedError

    def found(self) -> list[str]:
        """What a rehearsal says about what was found."""
        return []

    def prepare(self, folder: Path) -> str:
        """Work before the first iteration, done again on resuming; may write for people into the run directory.

        Returns what is worth saying about it.
        """
        return ""

    def train_iteration(self, iteration: int) -> dict[str, float]:
        """One iteration, counted from 0; returns the numbers to log."""
        raise NotImplementedError

    def look(self) -> dict[str, Score]:
        """The scores whose mean selects what is kept, by what they are; none: the last iteration is kept."""
        raise NotImplementedError

    def evaluate(self, split: str) -> dict[str, Score]:
        """Scores on a split, by image set."""
        raise NotImplementedError

    def to_keep(self) -> dict[str, Any]:
        """What `best.pt` holds of the present iteration: what was learnt, and all that using it needs."""
        raise NotImplementedError

    def take_back(self, kept: dict[str, Any]) -> None:
        """Go back to what was kept."""
        raise NotImplementedError

    def finish(self) -> str:
        """Work after the selected iteration was taken back; returns what is worth saying about it."""
        return ""

    def examined_how(self) -> str:
        """What the report must say about how the scores came about, if anything."""
        return ""

    def effort(self) -> dict[str, int]:
        """What inverting one teacher costs, in images and steps; nothing for a method that inverts none."""
        return {}

    def asked(self) -> dict[str, float]:
        """What black boxes were asked: queries, calls, seconds, queries_per_image; nothing where none was."""
        return {}

    def pictures(self) -> dict[str, tuple[torch.Tensor, int]]:
        """Images worth looking at now: name -> uint8 (N, C, H, W) and how many stand in a row."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("clock", *self.STATE)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("clock", *self.STATE):
            getattr(self, name).load_state_dict(state[name])
