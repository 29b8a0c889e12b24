"""What may go wrong around the program: kills, a full disk, hostile and damaged files, nonsense on the command line."""

import errno
import itertools
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import main
from methods.teachers import __main__ as teachers_command
from utils import checkpoint, cli

Flags = Callable[..., list[str]]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["free", "bidf_mkd"])
def test_twenty_kills_at_any_moment_change_nothing(
    method: str,
    flags_for: Flags,
    in_a_child: Callable[..., int],
    kill_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The final learner and the log of a run that is killed and resumed are those of one that was left alone.

    Moments are counted in calls of Python functions, so that how fast the machine is changes none of them.
    """
    flags = [*flags_for(method, 12), "--no_floors"]

    def counted() -> None:
        calls, run = itertools.count(), main.main
        sys.setprofile(lambda frame, event, argument: next(calls) if event == "call" else None)
        main.main = lambda argv: (run(argv), sys.setprofile(None), (tmp_path / "calls").write_text(str(next(calls))))

    assert in_a_child([*flags, "--run_name", "whole"], counted) == 0
    whole, draws, kills = int((tmp_path / "calls").read_text()), random.Random(0), 0
    killed = tmp_path / "runs" / "killed"
    while not (killed / "result.json").is_file():
        argv = ["--resume", str(killed)] if (killed / "args.json").is_file() else [*flags, "--run_name", "killed"]
        if killed.is_dir() and not (killed / "args.json").is_file():
            killed.rmdir()  # killed before anything was written
        limit = draws.randrange(1, whole // 4) if kills < 20 else 0
        status = in_a_child(argv, lambda limit=limit: kill_after(limit) if limit else None)
        assert status in (0, -signal.SIGKILL)
        kills += status != 0
        left = [path for path in killed.rglob("*.pt") if path.name in ("best.pt", "last.pt")]
        for path in left:
            checkpoint.load(path)  # never half written
    assert kills >= 15
    one, other = (
        checkpoint.load(tmp_path / "runs" / name / "last.pt")["method"]["outer"]["learner"] for name in ("whole", "killed")
    )
    assert all(torch.equal(value, other["params"][name]) for name, value in one["params"].items())
    lines = [(tmp_path / "runs" / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "killed")]
    assert lines == [12, 12]


def test_a_full_disk_leaves_the_last_good_checkpoint(
    flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main([*flags_for("free", 2), "--no_floors", "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    (run / "result.json").unlink()
    before = {name: (run / name).read_bytes() for name in ("last.pt", "best.pt")}
    save = torch.save

    def half_written(value: object, file: object) -> None:
        save({"half": torch.zeros(4)}, file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(SystemExit) as stopped:
        cli.exit_with_message(lambda: main.main(["--resume", str(run), "--epochs", "4"]))
    assert stopped.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not list(run.glob(".*"))  # nothing half written lies about
    monkeypatch.undo()
    main.main(["--resume", str(run), "--epochs", "4"])
    assert checkpoint.load(run / "last.pt")["iteration"] == 4


class Hostile:
    """Unpickled, it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("where", ["teacher", "learner", "checkpoint"])
def test_a_hostile_checkpoint_runs_nothing(
    where: str, flags_for: Flags, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = tmp_path / "trapped"
    if where == "teacher":
        shutil.copytree(data_root / "teachers/cifar100/conv4/3way-16px", tmp_path / "pool")
        bad, argv = tmp_path / "pool" / "teacher_000.pth", [*flags_for("free"), "--teachers", str(tmp_path / "pool")]
    else:
        main.main([*flags_for("free"), "--no_floors", "--run_name", "mine"])
        run = tmp_path / "runs" / "mine"
        bad = run / ("best.pt" if where == "learner" else "last.pt")
        argv = ["--evaluate" if where == "learner" else "--resume", str(run)]
    torch.save({"state_dict": Hostile(trap), "learner": Hostile(trap)}, bad)
    with pytest.raises(SystemExit) as stopped:
        cli.exit_with_message(lambda: main.main(argv))
    assert stopped.value.code == 2
    assert "was not opened" in capsys.readouterr().err
    assert not trap.exists()


def mutated(content: bytes, draws: random.Random) -> bytes:
    """One of: bytes flipped, a piece cut out, doubled, or replaced by nonsense, the end missing, everything gone."""
    size = max(1, len(content))
    start = draws.randrange(size)
    end = min(size, start + draws.randint(1, max(1, size // 4)))
    kind = draws.randrange(6)
    if kind == 0:
        flipped = bytearray(content)
        for _ in range(draws.randint(1, 8)):
            if flipped:
                flipped[draws.randrange(len(flipped))] = draws.randrange(256)
        return bytes(flipped)
    nonsense = draws.choice(
        [b"", b"\x00" * 9, b"-1", b"nan", b"1e99", b"../../etc/passwd", "é☃".encode(), b'"', b",,,", b"\n\n"]
    )
    return (
        content[:start] + nonsense + content[end:],
        content[:start] + content[end:],
        content[:end] + content[start:],
        content[:start],
        nonsense,
    )[kind - 1]


def ends_well(work: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> int:
    """Run as the command line does: status 0, or 2 with one line that says what is wrong; anything else fails.

    Returns whether it was refused.
    """
    capsys.readouterr()
    status: object = 0
    try:
        cli.exit_with_message(work)
    except SystemExit as stop:
        status = stop.code or 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (status, len(said)) in ((0, 0), (2, 1))
    return len(said)


@pytest.fixture
def own_data(data_root: Path, tmp_path: Path) -> Path:
    """A copy of one image set and its teachers, to be damaged."""
    shutil.copytree(data_root / "cifar100", tmp_path / "data" / "cifar100")
    shutil.copytree(data_root / "teachers/cifar100/conv4/3way-16px", tmp_path / "data/teachers/cifar100/conv4/3way-16px")
    return tmp_path / "data"


TARGETS = {
    "cifar100/split/meta_test.csv": "exam",
    "cifar100/meta_test/meta_test_0/000.png": "exam",
    "teachers/cifar100/conv4/3way-16px/teachers.csv": "check",
    "teachers/cifar100/conv4/3way-16px/teacher_000.pth": "check",
}


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files_end_in_success_or_in_one_clear_line(
    target: str, own_data: Path, flags_for: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty times each: a list, an image, a manifest, a checkpoint; and no other file is touched."""
    draws, path, refused = random.Random(target), own_data / target, 0
    good = path.read_bytes()
    others = {file for file in own_data.rglob("*") if file.is_file()}
    where = ["--data_root", str(own_data)]
    exam = [*flags_for("random"), *where, "--no_floors"]
    check = ["check", *where, "--way_pretrain", "3", "--image_size", "16", "--threads", "1"]
    for _ in range(40):
        path.write_bytes(mutated(good, draws))
        work = (lambda: main.main(exam)) if TARGETS[target] == "exam" else (lambda: teachers_command.main(check))
        refused += ends_well(work, capsys)
    assert refused > 5
    assert others <= {file for file in own_data.rglob("*") if file.is_file()}


NONSENSE = ["", "-1", "0", "1e99", "nan", "inf", "x", "../..", "7 7", "--", "-", "é", "3.5", "True", "cifar100,cub", "\x00"]


def test_mutated_flags_end_in_success_or_in_one_clear_line(flags_for: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixty command lines with a token gone, doubled, misspelt, or with a value that is none."""
    draws = random.Random(0)
    for _ in range(60):
        argv = [*flags_for(draws.choice(["free", "random", "chorus", "bidf_mkd"]), 1), "--no_floors"]
        for _ in range(draws.randint(1, 2)):
            place = draws.randrange(len(argv))
            kind = draws.randrange(4)
            if kind == 0:
                del argv[place]
            elif kind == 1:
                argv.insert(place, argv[draws.randrange(len(argv))])
            elif kind == 2 and argv[place].startswith("--"):
                argv[place] = argv[place][:-1]
            elif not argv[place - 1].startswith(("--data_root", "--out")) and not argv[place].startswith("--"):
                argv[place] = draws.choice(NONSENSE)
        if "--data_root" in argv and "--out" in argv:  # else it would work in this folder
            ends_well(lambda argv=argv: main.main(argv), capsys)  # type: ignore[misc]
