"""The scripts must run the commands that the papers' own scripts run."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import main
from utils import cli

ROOT = Path(__file__).resolve().parents[1]
TABLE = pd.read_csv(ROOT / "tests" / "commands.tsv", sep="\t")
FAST = sorted({script for script in TABLE[TABLE.paper == "Fast-Datafree"].script if script.endswith(".sh")})


def commands_of(tmp_path: Path, *words: str) -> list[list[str]]:
    """The arguments of every `python main.py` that a script runs, by a python that only writes them down."""
    said = tmp_path / "said"
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(f'#!/bin/sh\ncase "$1" in -*) exec {sys.executable} "$@";; esac\necho "$@" >> {said}\n')
    stub.chmod(0o755)
    said.write_text("")
    environment = os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
    done = subprocess.run(["bash", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in said.read_text().splitlines()]
    assert all(line[0] == "main.py" for line in lines)
    return [line[1:] for line in lines]


def meaning(argv: list[str]) -> dict[str, object]:
    """What the flags come to; the card is the user's business."""
    return {name: value for name, value in vars(main.parse_args(cli.underscored(argv))).items() if name != "gpu"}


@pytest.mark.parametrize("script", FAST)
def test_fast_datafrees_scripts_mean_what_theirs_do(script: str, tmp_path: Path) -> None:
    ours = [meaning(argv) for argv in commands_of(tmp_path, script, "--all")]
    theirs = [meaning(command.split()[1:]) for command in TABLE[TABLE.script == script].command]
    assert sorted(map(str, ours)) == sorted(map(str, theirs))


def test_one_pair_a_call_and_flags_pass_through(tmp_path: Path) -> None:
    (argv,) = commands_of(tmp_path, "scripts/fast_cifar.sh", "r34-2", "--epochs", "3", "--warmup", "1")
    args = main.parse_args(argv)
    assert (args.teacher, args.student, args.g_steps, args.epochs) == ("resnet34", "resnet18", 2, 3)
    (argv,) = commands_of(tmp_path, "scripts/fast_cifar.sh")
    assert (main.parse_args(argv).student, main.parse_args(argv).g_steps) == ("wrn16_1", 5)
    for row in ("r50-r50", "r50-r18", "r50-mv2"):
        (argv,) = commands_of(tmp_path, "scripts/fast_imagenet.sh", row)
        assert main.parse_args(argv).pretrained


@pytest.mark.parametrize(
    ("torch", "words"), [("2.5.1", "has torch 2.5.1, tried are torch>="), ("2.15.0", "has torch 2.15.0"), ("", "has no torch")]
)
def test_an_environment_that_will_not_do_is_named(torch: str, words: str, tmp_path: Path) -> None:
    """An active environment is used as it is; one line says what it lacks, before anything is imported."""
    stub = tmp_path / "python"
    check = f'case "$1" in -) exec {sys.executable} "$@";; esac'
    stub.write_text(f"#!/bin/sh\n{check}\n" + (f"echo {torch}\n" if torch else "exit 1\n"))
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
    done = subprocess.run(["bash", "scripts/mr.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr


def test_an_unknown_row_is_named() -> None:
    done = subprocess.run(
        ["bash", "scripts/fast_cifar.sh", "wrn-3"],
        cwd=ROOT,
        env=os.environ | {"VIRTUAL_ENV": "here"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no row for wrn-3; there are: r34-10" in done.stderr
