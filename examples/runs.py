"""Runs of main.py as parts of a study: each is made once, gone on with after a kill, and read from its result."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import main as program


def result_of(out: Path, name: str, argv: Sequence[str]) -> dict[str, Any]:
    """What the run `name` in `out` ended with; it is made with the flags `argv` where it is not there yet."""
    result = out / name / "result.json"
    if result.parent.is_dir() and not result.is_file():
        program.main(["--resume", str(result.parent)])
    elif not result.is_file():
        program.main([*argv, "--out", str(out), "--run_name", name])
    return json.loads(result.read_text(encoding="utf-8"))


def behind_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """A study's own flags, and those behind `--`, which are for main.py."""
    if "--" not in argv:
        return list(argv), []
    split = list(argv).index("--")
    return list(argv[:split]), list(argv[split + 1 :])
