"""The run directory: what was asked, what happened, and everything needed to go on."""

import json
import math
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from utils import checkpoint
from utils.errors import Stopped, UserError
from utils.files import locked, write_text
from utils.images import Grid, save_grid

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

WORTH_KEEPING = ("last.pt", "asked.jsonl", "result.json")  # what training has reached, what services were paid for, scores
PACKAGES = ("torch", "numpy", "pandas", "pillow")


class RunLog:
    """Writes `args.json`, `log.txt`, `metrics.jsonl`, TensorBoard events, `images/`, checkpoints and `result.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def board(self) -> "SummaryWriter":
        """TensorBoard's writer, made when there is something to write."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        return SummaryWriter(str(self.folder))

    @classmethod
    def create(
        cls, out: Path, name: str, chosen: bool, flags: Mapping[str, Any], argv: Sequence[str], overwrite: bool = False
    ) -> "RunLog":
        """Make a new run directory `out/name`; a taken name gets a number, unless the user chose it (`UserError`).

        With `overwrite` a run of that name is removed first; a folder that is no run is left alone (`UserError`).
        """
        folder, number = out / name, 2
        record = {"flags": flags, "argv": list(argv), "working_folder": str(Path.cwd()), "environment": _environment()}
        if overwrite and folder.exists():
            try:
                cls.read_record(folder)
            except UserError as error:
                raise UserError(f"--overwrite: {error}; it was left as it is") from error
            with locked(folder):
                shutil.rmtree(folder)
        while True:
            try:
                folder.mkdir(parents=True)
                break
            except FileExistsError as error:
                if chosen and folder.is_dir() and not any(folder.iterdir()):
                    break  # of a run that a full disk let not begin, or somebody's preparation
                if chosen:
                    raise UserError(
                        f"--run_name {name}: {folder} exists already; choose another name, --resume {folder}, or --overwrite"
                    ) from error
            folder, number = out / f"{name}-{number}", number + 1
        log = cls(folder)
        with log.stoppable(new=True):
            log.write("args.json", json.dumps(record, indent=2, default=str) + "\n")
        return log

    @staticmethod
    def read_record(folder: Path) -> dict[str, Any]:
        """The `flags`, `argv`, `working_folder` and `environment` of an earlier run.

        Raises `UserError` if `folder` is no run directory.
        """
        try:
            record = json.loads((folder / "args.json").read_text(encoding="utf-8"))
            earlier: dict[str, Any] = {"argv": [], "working_folder": "", "environment": {}}
            found = earlier | record
            return found | {"flags": dict(record["flags"]), "working_folder": str(found["working_folder"])}
        except FileNotFoundError as error:
            raise UserError(f"{folder} is no run directory: it has no args.json") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{folder}/args.json is damaged and cannot be read") from error

    @staticmethod
    def read_flags(folder: Path) -> dict[str, Any]:
        """The flags of an earlier run. Raises `UserError` as `read_record` does."""
        return RunLog.read_record(folder)["flags"]

    def say(self, text: str) -> None:
        """Print above the progress bar, and keep in log.txt."""
        tqdm.write(text, file=sys.stdout)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append one line of numbers to metrics.jsonl and show them in TensorBoard."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, iteration)

    def forget_after(self, iteration: int) -> None:
        """Drop the metrics of iterations that will be run again."""
        path = self.folder / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            write_text(path, "".join(f"{line}\n" for line in lines if _iteration_of(line) <= iteration))

    def picture(self, name: str, grid: Grid, iteration: int) -> None:
        """Save a grid as images/<name>_<iteration>.png, and show it in TensorBoard."""
        pixels = save_grid(grid, self.folder / "images" / f"{name}_{iteration:06d}.png")
        self.board.add_image(name, pixels, iteration, dataformats="HWC")

    def write(self, name: str, text: str) -> None:
        write_text(self.folder / name, text)

    def save(self, name: str, content: Any) -> None:
        checkpoint.save(content, self.folder / name)

    def result(self, content: Mapping[str, Any], name: str = "result") -> None:
        """Write <name>.json; one that is there already is kept as earlier-<name>-1.json, or the next free number."""
        self._set_aside(name)
        write_text(self.folder / f"{name}.json", json.dumps(content, indent=2) + "\n")

    def set_aside_evaluations(self) -> None:
        """What --evaluate has made of the learner of before becomes an earlier result, too."""
        for path in sorted(self.folder.glob("evaluate*.json")):
            self._set_aside(path.stem)

    def _set_aside(self, name: str) -> None:
        path, number = self.folder / f"{name}.json", 1
        if path.exists():
            while (kept := self.folder / f"earlier-{name}-{number}.json").exists():
                number += 1
            path.rename(kept)

    def final_scores(self, flags: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Show flags and final scores in TensorBoard's table of hyper-parameters."""
        shown = {name: value if isinstance(value, (bool, int, float)) else str(value) for name, value in flags.items()}
        self.board.add_hparams(shown, dict(scores), run_name=".")

    def check_kept_learner(self) -> None:
        """Raise `UserError` where the run was stopped before it had anything to keep."""
        if not (self.folder / "best.pt").is_file():
            raise UserError(f"{self.folder} has kept nothing yet to evaluate: go on with --resume {self.folder}")

    def alone(self) -> AbstractContextManager[None]:
        """Hold the run directory: `UserError` where another process works in it."""
        return locked(self.folder)

    def close(self) -> None:
        if "board" in vars(self):
            self.board.close()

    @contextmanager
    def stoppable(self, new: bool) -> Iterator[None]:
        """A stop inside the block says how to go on.

        A stop or a failure before there was anything worth keeping takes a `new` directory away again.
        """
        try:
            yield
        except (KeyboardInterrupt, UserError, OSError) as reason:
            worth = [name for name in WORTH_KEEPING if (self.folder / name).is_file()]
            if worth and isinstance(reason, KeyboardInterrupt):
                raise Stopped(f"stopped at once; go on with: python main.py --resume {self.folder}") from None
            if new and not worth:
                self.close()
                shutil.rmtree(self.folder, ignore_errors=True)
                if isinstance(reason, KeyboardInterrupt):
                    raise Stopped("stopped before the first iteration; nothing is left of this run") from None
            raise


class SilentLog(RunLog):
    """The log of a process that is not the first of its job: it reads the run directory and writes nothing into it."""

    def say(self, text: str) -> None: ...

    def metrics(self, iteration: int, values: Mapping[str, float]) -> None: ...

    def forget_after(self, iteration: int) -> None: ...

    def picture(self, name: str, grid: Grid, iteration: int) -> None: ...

    def write(self, name: str, text: str) -> None: ...

    def save(self, name: str, content: Any) -> None: ...

    def result(self, content: Mapping[str, Any], name: str = "result") -> None: ...

    def set_aside_evaluations(self) -> None: ...

    def final_scores(self, flags: Mapping[str, Any], scores: Mapping[str, float]) -> None: ...

    def alone(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def stoppable(self, new: bool) -> Iterator[None]:
        yield


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without those that a kill or a full disk left damaged, which a note counts."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    whole = [line for line in lines if math.isfinite(_iteration_of(line))]
    if len(whole) < len(lines):
        print(f"note: {path}: {len(lines) - len(whole)} damaged lines left out", file=sys.stderr)
    return [json.loads(line) for line in whole]


def _iteration_of(line: str) -> float:
    """The iteration of a line of metrics; beyond all for a damaged one."""
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git on this machine
        return "unknown"
    return git.stdout.strip() or "unknown"


def _environment() -> dict[str, str]:
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "cuda": torch.version.cuda or "none",
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine(),
    }
