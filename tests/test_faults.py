"""What may go wrong around the program: kills, a full disk, hostile and damaged files, nonsense on the command line."""

import errno
import itertools
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mutations import mutated

import main
import pretrain
from methods.runs import page
from methods.runs.run_log import RunLog
from methods.teachers import __main__ as teachers_command
from methods.teachers.manifest import read_manifest
from utils import checkpoint, cli
from utils.errors import UserError
from utils.files import locked

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
    assert {path.name for path in run.glob(".*")} <= {".lock"}  # nothing half written lies about
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


def test_a_run_directory_runs_no_code_that_was_not_allowed_anew(
    flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither services of a function nor architectures, though the run was once started with them."""
    (tmp_path / "theirs.py").write_text(
        "import pathlib, torch\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class Service:\n"
        "    name, class_names, image_size = 'one', ['a', 'b', 'c'], 16\n"
        "    def query(self, images):\n"
        "        return torch.softmax(images.mean((2, 3)) * torch.tensor([3.0, 2.0, 1.0]), 1)\n"
        "def make():\n"
        "    return [Service()]\n"
    )
    place = f"{tmp_path / 'theirs.py'}:make"
    nowhere = ["--data_root", str(tmp_path / "nothing")]
    main.main([*flags_for("bidf_mkd"), "--ZO", "--teachers", place, *nowhere, "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    (tmp_path / "ran").unlink()
    monkeypatch.delitem(sys.modules, "theirs")
    for way in ("--resume", "--evaluate"):
        with pytest.raises(UserError, match=r"theirs\.py:make; if it is yours, add --allow_code"):
            main.main([way, str(run)])
        assert not (tmp_path / "ran").exists()
    main.main(["--resume", str(run), "--allow_code", place])
    assert (tmp_path / "ran").exists()


def test_flags_kept_in_a_run_directory_are_held_against_the_parser(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("free"), "--no_floors", "--run_name", "mine"])
    path = tmp_path / "runs" / "mine" / "args.json"
    whole = path.read_text()
    wrong = {"epochs": "many", "inner_lr": -1, "no_floors": 3, "select_on": "other", "teachers": 5, "seed": [1], "out": 7}
    for name, value in wrong.items():
        content = json.loads(whole)
        content["flags"][name] = value
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"args\.json: --{name} is"):
            main.main(["--resume", str(path.parent)])
    for damaged in ("", "{", "[]", '{"flags": 3}', '{"flags": {}}', "[" * 100_000):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"args\.json is damaged"):
            main.main(["--resume", str(path.parent)])


def test_a_machine_without_git_runs_all_the_same(flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    main.main([*flags_for("free"), "--no_floors", "--run_name", "mine"])
    record = json.loads((tmp_path / "runs" / "mine" / "args.json").read_text())
    assert record["environment"]["commit"] == "unknown"


def test_a_disk_that_keeps_no_cache_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(value: object, file: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")  # torch's words for it

    monkeypatch.setattr(torch, "save", full)
    assert checkpoint.cached(tmp_path, "key", lambda: 7) == 7
    assert "is not kept" in capsys.readouterr().err
    with pytest.raises(OSError, match="is the disk full"):
        checkpoint.save(7, tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_kept_nothing_is_not_evaluated(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("free"), "--no_floors", "--run_name", "mine"])
    (tmp_path / "runs" / "mine" / "best.pt").unlink()
    with pytest.raises(UserError, match="has kept nothing yet to evaluate: go on with --resume"):
        main.main(["--evaluate", str(tmp_path / "runs" / "mine")])


def test_damaged_lines_of_numbers_are_dropped(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for("free", 2), "--no_floors", "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    whole = (run / "metrics.jsonl").read_text()
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\0\xff\n[3]\n{}\n{"iteration": 2, "lo')
    page.main([str(run), "--out", str(tmp_path / "report.html")])
    said = capsys.readouterr()
    assert "1 runs" in said.out
    assert "metrics.jsonl: 4 damaged lines left out" in said.err
    RunLog(run).forget_after(2)
    assert (run / "metrics.jsonl").read_text() == whole
    broken = tmp_path / "runs" / "broken"
    shutil.copytree(run, broken)
    (broken / "args.json").write_text("{")
    page.main([str(run), str(broken), "--out", str(tmp_path / "report.html")])
    assert "broken is left out" in capsys.readouterr().err


def test_two_processes_never_work_in_one_run_or_pool(
    flags_for: Flags, data_root: Path, tmp_path: Path, in_a_child: Callable[..., int]
) -> None:
    main.main([*flags_for("free"), "--no_floors", "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    with locked(run):
        assert in_a_child(["--resume", str(run), "--epochs", "4"]) == 2
    (tmp_path / "cifar100").symlink_to(data_root / "cifar100")
    argv = ["--data_root", str(tmp_path), "--way_pretrain", "3", "--pre_model_num", "1", "--pretrain_epochs", "1"]
    pool = tmp_path / "teachers" / "cifar100" / "conv4" / "3way"
    pool.mkdir(parents=True)
    with locked(pool), pytest.raises(UserError, match="another process works in"):
        pretrain.main(argv)
    pretrain.main(argv)


def test_a_pool_trained_anew_and_killed_leaves_no_line_of_the_old_one(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar100").symlink_to(data_root / "cifar100")
    argv = ["--data_root", str(tmp_path), "--way_pretrain", "3", "--pre_model_num", "2", "--image_size", "16"]
    pretrain.main([*argv, "--pretrain_epochs", "1"])
    manifest = tmp_path / "teachers" / "cifar100" / "conv4" / "3way-16px" / "teachers.csv"
    with pytest.raises(UserError, match="not finite"):  # as good as a kill: nothing new was written
        pretrain.main([*argv, "--pretrain_epochs", "3", "--pretrain_lr", "1e30", "--overwrite", "--seed", "1"])
    assert not manifest.exists()
    pretrain.main([*argv, "--pretrain_epochs", "1", "--seed", "1"])
    assert {row.seed for row in read_manifest(manifest)} == {1}


OUT_OF_RANGE = {
    "--pretrain_epochs -1": "pretrain", "--pretrain_lr inf": "pretrain", "--batch_size 0": "pretrain",
    "--pre_model_num 0": "pretrain", "--num_class_per_task 1": "pretrain", "--image_size 100000": "pretrain",
    "--seed 1234567890123456789012345": "main", "--threads 200000": "main", "--threads -1": "main", "--gpu -1": "main",
    "--seeds 0 -1": "main", "--warmup -1": "main", "--adv nan": "main", "--reptile_lr inf": "main", "--bn 1e999": "main",
}  # fmt: skip


@pytest.mark.parametrize("typed", OUT_OF_RANGE)
def test_numbers_that_cannot_be_meant_are_refused(typed: str, flags_for: Flags) -> None:
    command = {"pretrain": pretrain.main, "main": lambda argv: main.main([*flags_for("free"), *argv])}[OUT_OF_RANGE[typed]]
    with pytest.raises(UserError, match=rf"{typed.split()[0]}\S*: .*expected"):
        command(typed.split())


def test_a_port_in_use_is_named(data_root: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        pool = data_root / "teachers" / "cifar100" / "conv4" / "3way-16px"
        with pytest.raises(UserError, match=f"--port {port}: nobody can listen there"):
            teachers_command.main(["serve", "--teachers", str(pool), "--port", str(port)])


def test_a_dry_run_of_one_epoch(flags_for: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for("chorus", 1), "--dry_run"])
    assert "1 iterations, validated every 1" in capsys.readouterr().out
