"""The outer loop, once for all methods: train, validate, log, keep the best, go on after a kill."""

import itertools
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

from methods.runs.arguments import Experiment
from methods.runs.run_log import RunLog
from utils import checkpoint, distributed, seed, tables
from utils.errors import Stopped, UserError
from utils.progress import Progress

SECONDS_BETWEEN_CHECKPOINTS = 60
RATES = ("outer_lr", "inner_lr", "lr", "lr_g", "Glr")  # flags that a failed training may have had too high
NOTED_LATER = ("images ", "the file ")  # kinds of lines that earlier versions did not write


class Training:
    """Where a run stands: the next iteration, the best validation so far, and the seconds it took."""

    def __init__(self, experiment: Experiment, log: RunLog) -> None:
        self.experiment, self.log = experiment, log
        self.iteration = 0
        self.best: float | None = None
        self.best_iteration = 0
        self.seconds = 0.0
        self._resumed_at = time.perf_counter()

    def run(self) -> None:
        """Train to the last iteration, validating on the way."""
        args, method, total = self.experiment.args, self.experiment.method, self.experiment.num_iterations
        self._resumed_at, saved_at = time.perf_counter(), time.perf_counter()
        if total == 0:
            self._keep(None)
            return
        self.log.forget_after(self.iteration)
        news = method.prepare(self.log.folder)
        if news:
            self.log.say(news)
        with _stop_flag() as stop, Progress(total=total, initial=self.iteration, desc=args.method, unit="it") as progress:
            while self.iteration < total:
                numbers = method.train_iteration(self.iteration)
                self.iteration += 1
                self._refuse_nonsense(numbers)
                last = self.iteration == total
                validated = self.iteration % self.experiment.val_interval == 0 or last
                if validated:
                    numbers |= self._validate()
                self.log.metrics(self.iteration, numbers | {"seconds": self.elapsed})
                progress.update()
                progress.set_postfix({name: f"{value:.3g}" for name, value in numbers.items()})
                late = time.perf_counter() - saved_at > SECONDS_BETWEEN_CHECKPOINTS
                stopping, late = distributed.any_of(stop(), late)
                if stopping or validated or late:
                    self.save()
                    saved_at = time.perf_counter()
                if stopping and not last:
                    raise Stopped(
                        f"stopped after iteration {self.iteration}; go on with: python main.py --resume {self.log.folder}"
                    )
        if not self.best_iteration:  # a run that was stopped before its first look, and is told to end there
            self._validate()
            self.save()

    @property
    def elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._resumed_at

    def _validate(self) -> dict[str, float]:
        """Score what was learnt on what selects, and keep it if it is the best so far."""
        experiment, args = self.experiment, self.experiment.args
        with seed.kept(args.seed):  # looking at a learner leaves its training as it is
            scores = experiment.validate()
        numbers = {name: score.mean for name, score in scores.items()}
        value = sum(numbers.values()) / len(numbers) if numbers else None
        if value is None or self.best is None or value > self.best:
            self.best, self.best_iteration = value, self.iteration
            self._keep(value)
        if args.save_images or self.iteration == experiment.num_iterations:
            with seed.kept(args.seed):
                pictures = experiment.method.pictures()
            for name, grid in pictures.items():
                self.log.picture(name, grid, self.iteration)
        if value is None:
            return {}
        half_width = max(score.half_width for score in scores.values())
        self.log.say(
            f"iteration {self.iteration}: {args.select_on} {100 * value:.2f} ± {100 * half_width:.2f} %, "
            f"best {100 * (self.best or 0):.2f} % at {self.best_iteration}, {tables.duration(self.elapsed)}"
        )
        return numbers | {"val": value, "val_half_width": half_width}

    def _keep(self, value: float | None) -> None:
        args = self.experiment.args
        about = {
            "method": args.method,
            "iteration": self.iteration,
            "selected_by": args.select_on if value is not None or not self.experiment.method.TRAINS else "last",
            "selection_accuracy": value,
            "stands_on": self.experiment.stands_on,
        }
        self.log.save("best.pt", self.experiment.best_state() | about)

    def _refuse_nonsense(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            if not math.isfinite(value):
                last = self.log.folder / "last.pt"
                kept = f"the last good checkpoint is {last}; " if last.is_file() else ""
                rates = " or ".join(f"--{rate}" for rate in RATES if hasattr(self.experiment.args, rate))
                raise UserError(f"iteration {self.iteration}: {name} is {value}; {kept}try a smaller {rates}")

    def save(self) -> None:
        self.log.save(
            "last.pt",
            {
                "method": self.experiment.method.state_dict(),
                "rng": distributed.from_each(seed.rng_state()),
                "iteration": self.iteration,
                "best": self.best,
                "best_iteration": self.best_iteration,
                "seconds": self.elapsed,
                "stands_on": self.experiment.stands_on,
            },
        )

    def restore(self) -> None:
        """Go back to the last checkpoint of the run directory (to the start, where there is none yet); writes nothing."""
        path, best = self.log.folder / "last.pt", self.log.folder / "best.pt"
        args = self.experiment.args
        if not path.is_file():
            if args.resume and (self.log.folder / "metrics.jsonl").is_file():
                self.log.say("note: last.pt is not there: the run begins anew")
            if not self.experiment.method.TRAINS and best.is_file():  # what is scored are the teachers themselves
                self._check_ground(checkpoint.load(best, "cpu").get("stands_on", self.experiment.stands_on), scored=False)
            return
        state = checkpoint.load(path, "cpu")
        before = state.get("stands_on", self.experiment.stands_on)  # earlier versions kept none
        self._check_ground(before, scored=bool(args.evaluate))
        if args.resume and state["iteration"] > self.experiment.num_iterations:
            raise UserError(f"{self.log.folder} has come to iteration {state['iteration']}: it cannot end before that")
        if args.resume and state["best_iteration"]:
            checkpoint.load(best, "cpu")  # that it is there, and whole, is to be known before the work
        self.experiment.method.load_state_dict(state["method"])
        self.iteration, self.best, self.best_iteration = state["iteration"], state["best"], state["best_iteration"]
        self.seconds = state["seconds"]
        streams = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]  # earlier versions kept the first's
        seed.set_rng_state(streams[min(distributed.rank(), len(streams) - 1)])

    def _check_ground(self, before: Sequence[str], scored: bool) -> None:
        """Raise `UserError` where the run began with other teachers, classes or images.

        With other weights and images it may still be `scored`; earlier versions noted neither, or the weights alone.
        """
        unnoted = tuple(kind for kind in NOTED_LATER if scored or not any(was.startswith(kind) for was in before))
        lines = ([line for line in some if not line.startswith(unnoted)] for some in (before, self.experiment.stands_on))
        for was, now in itertools.zip_longest(*lines, fillvalue="nothing"):
            if not _still_holds(was, now, scored):
                raise UserError(
                    f"{self.log.folder} began with {was}, where there is {now} now: bring back what it began with, or start a "
                    "new run"
                )


def _still_holds(was: str, now: str, scored: bool) -> bool:
    """Whether a line of what a run stands on is as it was: earlier versions said less of a teacher, and a learner is `scored`
    whatever its teachers' weights are now."""
    name_then, name_now = (line.partition(", weights ")[0] for line in (was, now))
    return was in (now, name_now) or now.startswith(f"{was}, ") or (scored and name_then == name_now)


@contextmanager
def _stop_flag() -> Iterator[Any]:
    """Turn the first Ctrl-C or SIGTERM into a flag, read by calling what is yielded; a second one acts at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        tqdm.write("stopping after this iteration (once more: at once)")

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
