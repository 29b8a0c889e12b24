"""Runs of main.py as parts of a study: each is made once, gone on with after a kill, and read from its result."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import main as program
from methods.runs.config import OF_ONE_RUN, changed
from methods.runs.run_log import RunLog
from utils import cli
from utils.errors import UserError
from utils.files import write_text


def result_of(out: Path, name: str, argv: Sequence[str]) -> dict[str, Any]:
    """What the run `name` in `out` ended with; it is made with the flags `argv` where it is not there yet.

    Raises `UserError` where it is there and was made with others.
    """
    result, typed = out / name / "result.json", [*argv, "--out", str(out), "--run_name", name]
    if result.parent.is_dir():
        args = program.parse_args(typed)
        if differ := changed(RunLog.read_flags(result.parent), args, vars(args).keys() - OF_ONE_RUN - cli.MACHINE):
            others = ", ".join(f"--{flag}" for flag in differ)
            raise UserError(f"{result.parent} was made with another {others}: give the study another --out")
    if result.parent.is_dir() and not result.is_file():
        allowed = args.allow_code or []
        program.main(["--resume", str(result.parent), *(["--allow_code", *allowed] if allowed else [])])
    elif not result.is_file():
        program.main(typed)
    return json.loads(result.read_text(encoding="utf-8"))


def check_study(out: Path, about: dict[str, Any]) -> None:
    """Note in `out` what its study stands on. Raises `UserError` where that was something else."""
    path = out / "study.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != about:
        raise UserError(f"{out} holds a study of other teachers or settings: give this one another --out")
    write_text(path, json.dumps(about, indent=2) + "\n")


def behind_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A study's own flags, and those behind `--`, which are for main.py."""
    if "--" not in argv:
        return list(argv), []
    split = list(argv).index("--")
    return list(argv[:split]), list(argv[split + 1 :])
