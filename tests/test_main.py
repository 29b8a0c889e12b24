"""The program as its users run it, on tiny data."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
import pretrain
from datasets.registry import SPECS
from methods import METHODS, get_method, methods_of
from methods.metalearners import METALEARNERS
from methods.runs.arguments import experiment_of
from methods.runs.run_log import RunLog, read_metrics
from methods.runs.training import Training
from utils import checkpoint, cli, seed
from utils.errors import UserError
from utils.images import shown_in_rows

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = pd.read_csv(ROOT / "tests" / "commands.tsv", sep="\t").command.tolist()


def only_run(out: Path) -> Path:
    (run,) = (path for path in (out / "runs").iterdir() if not path.name.startswith("."))
    return run


Flags = Callable[..., list[str]]


# ---------------------------------------------------------------- every method, one after another


def scenarios() -> Iterator[Any]:
    """Every few-shot method with one image set, with three, and with teachers of several architectures, 1 and 5 shots."""
    for method, flag, shot in itertools.product(methods_of("few_shot"), ("--dataset", "--pre_backbone"), ("1", "5")):
        mixed = [] if (method, flag, shot) == ("free", "--dataset", "1") else [pytest.mark.slow]
        yield pytest.param(method, [flag, "mix"], shot, marks=mixed)
        if flag == "--dataset":
            yield pytest.param(method, [flag, "cifar100"], shot)


@pytest.mark.parametrize(("method", "scenario", "shot"), scenarios())
def test_every_method_in_every_scenario(method: str, scenario: list[str], shot: str, flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for(method), *scenario, "--num_sup_train", shot])
    run = only_run(tmp_path)
    result = json.loads((run / "result.json").read_text())
    sets = ["cifar100", "miniimagenet", "cub"] if scenario[1] == "mix" and scenario[0] == "--dataset" else ["cifar100"]
    assert list(result["accuracy"]) == sets
    assert ("in one normalisation" in (run / "log.txt").read_text()) == (len(sets) > 1)
    assert all(0 <= result["accuracy"][name]["mean"] <= 1 for name in sets)
    assert result["shot"] == int(shot)
    assert len(result["episodes"][sets[0]]) == 4
    assert "random learner, adapted" in result["yardsticks"]
    for name in ("args.json", "log.txt", "best.pt"):
        assert (run / name).is_file()
    if get_method(method).STATE:
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
        assert list(run.glob("events.*"))
        assert (run / "images" / "curve.png").stat().st_size > 1000
    best = checkpoint.load(run / "best.pt")
    assert best["learner"]["spec"]["image_size"] == 16
    if get_method(method).STATE:  # what was learnt is not what it began with
        args = main.parse_args([*flags_for(method), *scenario, "--num_sup_train", shot])
        seed.seed_everything(args.seed)
        begun = experiment_of(get_method(method))(get_method(method), args, torch.device("cpu")).method.learner.params
        assert any(not torch.equal(value, begun[name].detach()) for name, value in best["learner"]["params"].items())


@pytest.mark.parametrize("dataset", sorted(SPECS))
def test_every_image_set_from_teachers_to_a_number(dataset: str, data_root: Path, flags_for: Flags, tmp_path: Path) -> None:
    root = tmp_path / "data"  # teachers go here, not into the shared tree
    root.mkdir()
    for folder in data_root.iterdir():
        if folder.name != "teachers":
            (root / folder.name).symlink_to(folder)
    own = ["--dataset", dataset, "--data_root", str(root)]
    pools = {"free": "--way_pretrain 3 --pre_model_num 2", "purer": "--num_class_per_task 3"}
    for method, pool in pools.items():
        pretrain.main([*own, *pool.split(), "--image_size", "16", "--pretrain_epochs", "1"])
        main.main([*flags_for(method), *own, "--run_name", method])
        run = tmp_path / "runs" / method
        result = json.loads((run / "result.json").read_text())
        assert list(result["accuracy"]) == [dataset]
        assert list((run / "images").glob("*_000002.png"))


@pytest.mark.parametrize("metalearner", [name for name in METALEARNERS if name != "maml"])  # which most rows have
@pytest.mark.parametrize("method", [name for name in methods_of("few_shot") if get_method(name).STATE])
def test_other_metalearners(method: str, metalearner: str, flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for(method), "--metalearner", metalearner, "--inductive"])
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert result["metalearner"] == metalearner
    fixed = method in ("chorus", "real_classifier")
    assert result["batch_statistics"] == ("none: fixed numbers" if fixed else "support")


def test_a_run_is_replaced_only_when_that_is_asked_for(flags_for: Flags, tmp_path: Path) -> None:
    flags = [*flags_for("random"), "--no_floors", "--run_name", "mine"]
    main.main(flags)
    with pytest.raises(UserError, match="--overwrite"):
        main.main(flags)
    (tmp_path / "runs" / "mine" / "note.txt").write_text("of the first run")
    main.main([*flags, "--overwrite"])
    assert not (tmp_path / "runs" / "mine" / "note.txt").exists()
    (tmp_path / "runs" / "photos").mkdir()
    with pytest.raises(UserError, match=r"is no run directory: .*it was left as it is"):
        main.main([*flags[:-1], "photos", "--overwrite"])
    (tmp_path / "runs" / "photos" / "args.json").write_text('{"lr": 0.1}')  # somebody else's
    with pytest.raises(UserError, match="it was left as it is"):
        main.main([*flags[:-1], "photos", "--overwrite"])


def test_several_seeds_in_one_command(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("chorus"), "--seeds", "3", "5", "--no_floors", "--run_name", "mine"])
    main.main([*flags_for("chorus"), "--seed", "5", "--no_floors", "--run_name", "alone"])
    found = {run.name: checkpoint.load(run / "best.pt")["learner"]["params"] for run in (tmp_path / "runs").glob("[a-z]*")}
    assert set(found) == {"mine-seed3", "mine-seed5", "alone"}
    assert all(torch.equal(value, found["alone"][name]) for name, value in found["mine-seed5"].items())
    assert any(not torch.equal(value, found["alone"][name]) for name, value in found["mine-seed3"].items())
    args = json.loads((tmp_path / "runs" / "mine-seed3" / "args.json").read_text())["flags"]
    assert (args["seed"], args["seeds"]) == (3, None)


def test_seeds_go_on_where_they_were(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*flags_for("real"), "--no_floors", "--run_name", "mine"]
    main.main([*flags, "--seeds", "3", "5"])
    runs = [tmp_path / "runs" / f"mine-seed{number}" for number in (3, 5)]
    assert "real: mean and spread of 2 seeds" in capsys.readouterr().out
    (runs[1] / "result.json").unlink()  # as one that was stopped before its exam
    before = {path: path.read_bytes() for path in runs[0].rglob("*") if path.is_file()}
    main.main([*flags, "--seeds", "3", "5", "7"])
    told = capsys.readouterr().out
    assert f"{runs[0]} is finished" in told
    assert "real: mean and spread of 3 seeds" in told
    assert before == {path: path.read_bytes() for path in before}
    assert (runs[1] / "result.json").is_file()
    assert [line["iteration"] for line in read_metrics(runs[1] / "metrics.jsonl")] == [1, 2]
    main.main([*flags, "--seeds", "3", "5", "7", "--dry_run"])
    assert capsys.readouterr().out.count("is finished") == 3
    with pytest.raises(UserError, match=r"mine-seed3 is a run with another --inner_lr: choose another --run_name"):
        main.main([*flags, "--seeds", "3", "--inner_lr", "0.5"])


def test_a_run_that_somebody_works_in_is_not_replaced(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("real"), "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    with RunLog(run).alone(), pytest.raises(UserError, match="another process works in"):
        main.main([*flags_for("real"), "--run_name", "mine", "--overwrite"])
    assert (run / "best.pt").is_file()


def test_a_damaged_line_of_metrics_stops_no_evaluation(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("real"), "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "lo')
    main.main(["--evaluate", str(run), "--num_sup_test", "2"])
    assert (run / "evaluate-3w2s.json").is_file()


def test_an_attempt_that_fails_leaves_no_folder(flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, iteration: int) -> dict[str, float]:
        if iteration == 1:
            raise UserError("no further")
        return {}

    monkeypatch.setattr(get_method("real"), "train_iteration", fails)
    with pytest.raises(UserError, match="no further"):
        main.main([*flags_for("real"), "--val_interval", "9"])
    assert list((tmp_path / "runs").glob("*")) == []
    with pytest.raises(UserError, match="no further"):
        main.main(flags_for("real"))
    assert (only_run(tmp_path) / "last.pt").is_file()  # of the first iteration, which was validated


def test_tensorboard_shows_images_flags_and_final_scores(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("free"), "--no_floors"])
    run = only_run(tmp_path)
    events = EventAccumulator(str(run)).Reload()
    assert events.Tags()["images"] == ["memory"]
    assert {"loss", "val", "meta_test/cifar100"} <= set(events.Tags()["scalars"])
    result = json.loads((run / "result.json").read_text())["accuracy"]["cifar100"]["mean"]
    assert events.Scalars("meta_test/cifar100")[-1].value == pytest.approx(result, rel=1e-6)
    assert "_hparams_/session_start_info" in events.summary_metadata
    known = checkpoint.load(run / "best.pt")["class_names"]
    with Image.open(next((run / "images").glob("memory_*.png"))) as picture:
        assert shown_in_rows(picture) == [name for name in known if name in shown_in_rows(picture)] != []


def test_a_run_is_repeated_from_its_config(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("chorus"), "--no_floors", "--run_name", "first", "--seed", "4", "--no_mirror"])
    config = tmp_path / "runs" / "first" / "config.yaml"
    again = ["--config", str(config), "--out", str(tmp_path / "runs"), "--threads", "1"]
    main.main([*again, "--run_name", "second"])
    args, results = {}, {}
    for name in ("first", "second"):
        args[name] = json.loads((tmp_path / "runs" / name / "args.json").read_text())["flags"]
        results[name] = json.loads((tmp_path / "runs" / name / "result.json").read_text())
    assert {name for name in args["first"] if args["first"][name] != args["second"][name]} == {"config", "run_name"}
    assert results["first"]["episodes"] == results["second"]["episodes"]
    assert config.read_bytes() == (tmp_path / "runs" / "second" / "config.yaml").read_bytes()
    assert main.parse_args([*again, "--num_sup_train", "5"]).shot_test == 5  # what is typed goes before, and is followed


def test_teachers_of_one_image_set_and_episodes_of_another(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("free"), "--testdataset", "miniimagenet"])
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert list(result["accuracy"]) == ["miniimagenet"]
    assert all(list(line) == ["miniimagenet"] for line in result["yardsticks"].values())


def test_teachers_alone_without_any_image_set(
    data_root: Path, tmp_path: Path, flags_for: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = data_root / "teachers" / "cifar100" / "conv4" / "3way-16px"
    main.main([*flags_for("free"), "--teachers", str(teachers), "--data_root", str(tmp_path / "empty")])
    assert "not evaluated" in capsys.readouterr().out
    assert json.loads((only_run(tmp_path) / "result.json").read_text())["evaluated"] is False
    assert checkpoint.load(only_run(tmp_path) / "best.pt")["iteration"] == 2


def test_selection_by_pseudo_images_alone(data_root: Path, tmp_path: Path, flags_for: Flags) -> None:
    teachers = data_root / "teachers" / "cifar100" / "conv4" / "3way-16px"
    flags = [
        *flags_for("free", 3),
        "--teachers",
        str(teachers),
        "--data_root",
        str(tmp_path / "empty"),
        "--select_on",
        "pseudo",
    ]
    main.main(flags)
    lines = [json.loads(line) for line in (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["pseudo"])
    kept = checkpoint.load(only_run(tmp_path) / "best.pt")
    assert (kept["iteration"], kept["selected_by"]) == (best["iteration"], "pseudo")
    with pytest.raises(UserError, match="keeps no bank of pseudo-images"):
        main.parse_args(["--method", "chorus", "--select_on", "pseudo"])


def test_the_judge_draws_its_picture(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("free", 1), "--judge"])
    run = only_run(tmp_path)
    assert 0 <= json.loads((run / "result.json").read_text())["recognised"] <= 1
    assert list((run / "images").glob("recovered_*.png"))


def test_what_cannot_be_judged_is_refused_before_the_training(flags_for: Flags, data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chorus recovers no images"):
        main.main([*flags_for("chorus"), "--judge"])
    pool = data_root / "teachers" / "cifar100" / "conv4" / "3way-16px"
    listed = pd.read_csv(pool / "teachers.csv").drop(columns="dataset")
    listed["path"] = [str(pool / path) for path in listed.path]
    listed.to_csv(tmp_path / "zoo.csv", index=False)
    with pytest.raises(UserError, match="name the set in the list's column dataset"):
        main.main([*flags_for("free"), "--teachers", str(tmp_path / "zoo.csv"), "--judge"])
    assert not (tmp_path / "runs").exists()


def test_the_judge_sees_the_same_images_again(flags_for: Flags, tmp_path: Path) -> None:
    """--evaluate must judge what the run recovers, not what an untrained generator makes."""
    main.main([*flags_for("free"), "--judge"])
    run = only_run(tmp_path)
    (picture,) = (run / "images").glob("recovered_*.png")
    before = picture.read_bytes()
    main.main(["--evaluate", str(run)])
    assert picture.read_bytes() == before
    results = [json.loads((run / name).read_text()) for name in ("result.json", "evaluate-3w1s.json")]
    assert results[0]["recognised"] == results[1]["recognised"]


def test_the_ceiling_appears_once_it_was_measured(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main(flags_for("free"))
    assert "real data (ceiling)" not in capsys.readouterr().out
    main.main(flags_for("real"))
    main.main(flags_for("real_classifier"))
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "result.json").write_text("{")
    main.main(flags_for("random"))
    told = capsys.readouterr().out.rpartition("chance")[2]
    assert "real data (ceiling)" in told
    assert "one classifier of all real classes (ceiling)" in told
    main.main([*flags_for("random"), "--episode_test", "7"])  # another exam
    assert "(ceiling)" not in capsys.readouterr().out
    main.main([*flags_for("random"), "--inductive"])  # another way of being examined
    assert "real data (ceiling)" not in capsys.readouterr().out


# ---------------------------------------------------------------- stopping, resuming, evaluating


def state_of(run: Path) -> tuple[dict, list[dict]]:
    """All of last.pt but its times, and the metrics without theirs."""
    last = checkpoint.load(run / "last.pt")
    del last["seconds"], last["method"]["clock"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return last, [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def killed_when_saved(times: int) -> None:
    """Kill this process as soon as it has saved a checkpoint so many times."""
    save, saved = Training.save, itertools.count(1)

    def save_and_die(self: Training) -> None:
        save(self)
        if next(saved) == times:
            os.kill(os.getpid(), signal.SIGKILL)

    Training.save = save_and_die  # type: ignore[method-assign]


KILLED_DAILY = ("free", "purer", "bidf_mkd", "chorus", "fast_meta")  # the others are slow rows


@pytest.mark.parametrize(
    "method",
    [
        name if name in KILLED_DAILY else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
        if get_method(name).STATE
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    method: str, flags_for: Flags, in_a_child: Callable[..., int], tmp_path: Path
) -> None:
    flags = [*flags_for(method, 3), "--no_floors"]
    main.main([*flags, "--run_name", "whole"])
    killed = tmp_path / "runs" / "killed"
    assert in_a_child([*flags, "--run_name", "killed"], lambda: killed_when_saved(1)) == -signal.SIGKILL
    assert checkpoint.load(killed / "last.pt")["iteration"] == 1
    main.main(["--resume", str(killed)])
    for one, other in zip(state_of(tmp_path / "runs" / "whole"), state_of(killed), strict=True):
        assert_same(one, other)
    results = [json.loads((tmp_path / "runs" / name / "result.json").read_text()) for name in ("whole", "killed")]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0].get("episodes") == results[1].get("episodes")


def test_a_polite_stop_leaves_a_checkpoint(flags_for: Flags, tmp_path: Path, wait_until: Callable[..., None]) -> None:
    process = subprocess.Popen(
        [sys.executable, "main.py", *flags_for("free"), "--epochs", "100000", "--run_name", "stopped"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"TQDM_DISABLE": "1"},
    )
    run = tmp_path / "runs" / "stopped"
    try:
        wait_until((run / "metrics.jsonl").is_file, lambda: process.poll() is None)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"--resume {run}" in errors
    assert checkpoint.load(run / "last.pt")["iteration"] >= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("moment", "told"),
    [
        ("utils.cli.prepare_machine", "stopped"),
        ("methods.chorus.Chorus.prepare", "stopped before the first iteration; nothing is left of this run"),
    ],
)
def test_a_stop_before_the_first_iteration_leaves_nothing(
    moment: str, told: str, number: int, flags_for: Flags, in_a_child: Callable[..., int], tmp_path: Path
) -> None:
    """While teachers are read, or images made: one sentence, and no folder that blocks the name."""

    def signalled_there() -> None:
        pytest.MonkeyPatch().setattr(moment, lambda *_: os.kill(os.getpid(), number))

    assert in_a_child([*flags_for("chorus"), "--run_name", "mine"], signalled_there) == 130
    assert (tmp_path / "said").read_text() == f"{told}\n"
    assert not (tmp_path / "runs" / "mine").exists()


def test_a_run_of_an_earlier_version_is_refused_in_a_sentence(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("real"), "--no_floors"])
    run = only_run(tmp_path)
    last = checkpoint.load(run / "last.pt")
    last["method"] = {"clock": {}, **last["method"].pop("outer")}  # as the first versions kept it
    checkpoint.save(last, run / "last.pt")
    with pytest.raises(UserError, match=r"has no 'outer': an earlier version.*methods\.predict still takes its best\.pt"):
        main.main(["--resume", str(run), "--epochs", "4"])


def test_a_run_goes_on_from_another_folder(flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image sets, teachers and what is kept beside runs are found though all were typed relative to where it began."""
    flags = flags_for("chorus")
    data_root = Path(flags[flags.index("--data_root") + 1])
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "data").symlink_to(data_root)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    typed = [*flags, "--data_root", "data", "--out", "runs", "--run_name", "mine", "--no_floors"]
    main.main(typed)
    listed = next((data_root / "teachers" / "cifar100" / "conv4").rglob("teachers.csv")).relative_to(data_root)
    main.main([*typed, "--teachers", f"data/{listed}", "--run_name", "listed"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("mine", "listed"):
        main.main(["--evaluate", f"../work/runs/{name}"])
        assert (tmp_path / "work" / "runs" / name / "evaluate-3w1s.json").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_second_signal_acts_at_once(flags_for: Flags, in_a_child: Callable[..., int], tmp_path: Path) -> None:
    """In the second iteration the patience is over: what the first one left is whole, and the sentence says how to go on."""

    def signalled_twice() -> None:
        train = get_method("real").train_iteration

        def impatient(self: object, iteration: int) -> dict[str, float]:
            if iteration == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return train(self, iteration)

        get_method("real").train_iteration = impatient  # type: ignore[method-assign]

    assert in_a_child([*flags_for("real", 5), "--run_name", "mine"], signalled_twice) == 130
    run = tmp_path / "runs" / "mine"
    assert f"stopped at once; go on with: python main.py --resume {run}" in (tmp_path / "said").read_text()
    assert checkpoint.load(run / "last.pt")["iteration"] == 1


@pytest.mark.parametrize("program", ["main", "pretrain"])
def test_a_signal_while_the_imports_run_gives_a_sentence(program: str, tmp_path: Path) -> None:
    """The first thing that a program does, before the slow imports, is to be ready for a signal."""
    tripped = f"""
import os, runpy, signal, sys
from utils import interrupts

ready = interrupts.stop_with_a_sentence

def signalled() -> None:
    assert "torch" not in sys.modules
    ready()
    os.kill(os.getpid(), signal.SIGTERM)

interrupts.stop_with_a_sentence = signalled
runpy.run_path("{program}.py", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", tripped], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "stopped before anything began\n")


def test_evaluate_again_at_another_way_and_shot(flags_for: Flags, tmp_path: Path) -> None:
    main.main(flags_for("free"))
    run = only_run(tmp_path)
    first = json.loads((run / "result.json").read_text())
    main.main(["--evaluate", str(run)])
    again = json.loads((run / "evaluate-3w1s.json").read_text())
    assert again["episodes"] == first["episodes"]
    main.main(["--evaluate", str(run), "--way_test", "5", "--num_sup_test", "2", "--episode_test", "3"])
    main.main(["--evaluate", str(run), "--episode_test", "2"])
    assert len(json.loads((run / "evaluate-3w1s.json").read_text())["episodes"]["cifar100"]) == 2
    assert json.loads((run / "earlier-evaluate-3w1s-1.json").read_text()) == again  # nothing is overwritten
    other = json.loads((run / "evaluate-5w2s.json").read_text())
    assert "class means" in other["head"]
    assert len(other["episodes"]["cifar100"]) == 3


def test_calibration_can_be_added_when_evaluating(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main(flags_for("purer"))
    run = only_run(tmp_path)
    capsys.readouterr()
    main.main(["--evaluate", str(run), "--icfil", "--icfil_steps", "2"])
    assert "purer (calibrated by ICFIL)" in capsys.readouterr().out
    result = json.loads((run / "evaluate-3w1s.json").read_text())
    assert result["examined"] == "calibrated by ICFIL"
    assert result["seconds_of_an_episode"] > 0
    with pytest.raises(UserError, match="--icfil cannot change"):
        main.parse_args(["--resume", str(run), "--icfil"])


def test_runs_are_never_overwritten(flags_for: Flags, tmp_path: Path) -> None:
    for _ in range(2):
        main.main(flags_for("random"))
    names = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name[0] != ".")
    assert names == ["random-cifar100-3w1s-conv4", "random-cifar100-3w1s-conv4-2"]
    with pytest.raises(UserError, match="exists already"):
        main.main([*flags_for("random"), "--run_name", names[0]])


def test_nonsense_in_a_loss_stops_the_run(flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = get_method("real")
    train = real.train_iteration

    def poisoned(self, iteration: int) -> dict[str, float]:
        numbers = train(self, iteration)
        return numbers | {"loss": float("nan")} if iteration == 2 else numbers

    monkeypatch.setattr(real, "train_iteration", poisoned)
    with pytest.raises(UserError, match=r"iteration 3: loss is nan.*last\.pt"):
        main.main(flags_for("real", 5))
    assert checkpoint.load(only_run(tmp_path) / "last.pt")["iteration"] == 2


def test_a_finished_run_is_not_finished_again(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for("free", 1), "--no_floors", "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    main.main(["--resume", str(run)])
    assert "is finished, 1 iterations" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_dry_run_writes_nothing(flags_for: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main([*flags_for("free"), "--dry_run"])
    printed = capsys.readouterr().out
    assert "teachers found: 2" in printed
    assert "inversion_steps = 2" in printed
    assert "2 iterations" in printed
    assert "no run of free" in printed
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- the command line


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_the_papers_commands_parse_and_mean_the_same(command: str) -> None:
    program, *argv = command.split()
    args = (main if program == "main.py" else pretrain).parse_args(argv)
    parser = pretrain.build_parser() if program == "pretrain.py" and "--full" not in argv else main.build_parser(args.method)
    argv = cli.underscored([token for token in argv if token != "--full"])
    stored_as = cli.flags_of(parser)
    for flag, value in itertools.pairwise([*argv, "--"]):
        if flag.startswith("--"):
            stored = getattr(args, stored_as[flag])
            typed = True if value.startswith("--") else value
            assert stored == typed or str(stored) == typed or float(stored) == float(typed)


# What a command line is about, where all else of the papers' command lines must be a default; switches keep their meaning.
SCENARIO = set(
    """method dataset testdataset pre_backbone backbone metalearner shot_train shot_test way_train way_test candidate_size
    teacher student g_steps ZO num_class_per_task pretrain transfer_set way_pretrain pre_model_num gpu multigpu seed
    save_dir log_tag cmi_init""".split()
)
NO_RESULT = {"numsplit"}  # that changes memory alone; ours is as much as fits
NEVER_READ = {("dafl", "T"), ("zskt", "T"), ("dfq", "T")}  # typed as 20 in scripts whose code computes with 1


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.startswith("main.py")], ids=lambda command: command[8:60]
)
def test_defaults_are_what_the_papers_scripts_type(command: str) -> None:
    """The command line without its numbers gives the same numbers."""
    argv = cli.underscored(command.split()[1:])
    args = main.parse_args(argv)
    parser = main.build_parser(args.method)
    stored_as, kept, typed = cli.flags_of(parser), [], set()
    idle = {action.dest for action in parser._actions if hasattr(action, cli.WITHOUT_EFFECT)}
    for token in argv:
        if token.startswith("-") and not token[1:2].isdigit():
            name = stored_as[token]
            typed.add(name)
        if name in SCENARIO:
            kept.append(token)
    plain = main.parse_args(kept)
    for name in typed - idle - NO_RESULT:
        if (args.method, name) not in NEVER_READ:
            assert getattr(plain, name) == getattr(args, name), name


def test_a_quick_run_is_another_set_of_defaults() -> None:
    paper, quick = (main.parse_args(["--method", "free", "--settings", name]) for name in ("paper", "quick"))
    assert (paper.epochs, quick.epochs, paper.metalearner, quick.metalearner) == (1000, 16, "maml", "protonet")
    assert main.parse_args(["--method", "free", "--settings", "quick", "--epochs", "7"]).epochs == 7
    fast = main.parse_args(["--method", "fast_meta", "--settings", "quick", "--g_steps", "10"])
    assert (fast.epochs, fast.batch_size, fast.lr, fast.lr_g) == (24, 64, 0.1, 2e-3)  # the rate is that of the steps typed


def test_help_shows_the_defaults_that_hold(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.parse_args(["--method", "cmi", "--settings", "quick", "--g_steps", "5", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "student steps after each call of generation (default: 40)" in shown
    assert "weight of the contrast (CMI) (default: 0.0)" in shown


MIXED = re.compile(r" mix( |$)")  # pools of several architectures or sets, which take longest


@pytest.mark.parametrize(
    "command",
    [pytest.param(command, marks=pytest.mark.slow) if MIXED.search(command) else command for command in COMMANDS],
    ids=range(len(COMMANDS)),
)
def test_the_papers_commands_start(command: str, data_root: Path, flags_for: Flags, tmp_path: Path) -> None:
    """Later flags win, so the sizes are tiny and everything else is as typed."""
    program, *argv = command.split()
    if "--full" in argv:
        pretrain.main([*argv, *flags_for("scratch")[2:]])
        assert (tmp_path / "new.pth").is_file()
        return
    if program == "pretrain.py":
        (tmp_path / "cifar100").symlink_to(data_root / "cifar100")
        pretrain.main([*argv, "--data_root", str(tmp_path), "--pretrain_epochs", "1", "--image_size", "16"])
        assert list((tmp_path / "teachers").rglob("teacher_*.pth"))
        return
    method = argv[argv.index("--method") + 1]
    few = ["--pre_model_num", "1" if MIXED.search(command) else "2"]  # of each pool
    own = few if method in methods_of("few_shot") else ["--save_dir", str(tmp_path / "runs" / "mine")]
    main.main([*argv, *flags_for(method), *own, "--no_floors"])
    if "--pretrain" not in argv:
        assert (only_run(tmp_path) / "result.json").is_file()


def documented_commands() -> list[str]:
    """The commands of the code blocks in README and docs, without comments, continued lines joined."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in page.read_text(encoding="utf-8").split("```")[1::2]]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith(("python main.py", "python pretrain.py"))]


@pytest.mark.parametrize("command", documented_commands())
def test_the_documented_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no run of the same name lies about
    _, program, *argv = command.split()
    if "--resume" in argv or "--evaluate" in argv:  # these read the run that is named
        with pytest.raises(UserError, match="no run directory"):
            main.parse_args(argv)
        return
    (main if program == "main.py" else pretrain).parse_args(argv)


def test_help_shows_the_methods_own_flags_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, wanted in (
        (["--method", "free", "--help"], "--Glr"),
        (["--help"], "teacher_ncm"),
        (["--help_all"], "--no_floors"),
        (["--method", "free", "--help_all"], "--no_floors"),
    ):
        with pytest.raises(SystemExit) as stop:
            main.parse_args(argv)
        assert stop.value.code == 0
        told = capsys.readouterr().out
        assert wanted in told
        assert ("--no_floors" in told) == ("--help_all" in argv)
    assert main.parse_args(["--method", "real"]).episode_batch == 4
    assert main.parse_args(["--method", "free"]).episode_batch == 10


def test_parsing_has_no_side_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main.parse_args(["--method", "free", "--num-sup-train", "5"])
    pretrain.parse_args([])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--method is missing"),
        (["--method", "fre"], "unknown method 'fre': choose from free"),
        (["--method", "free", "--dataset", "imagenet"], "unknown dataset"),
        (["--method", "free", "--backbone", "vgg"], "unknown backbone"),
        (["--method", "free", "--pre_backbone", "vgg"], "unknown backbone"),
        (["--method", "free", "--teacherMethod", "svm"], "unknown metalearner"),
        (["--method", "real", "--Glr", "1"], "--Glr is no flag of --method real; it belongs to free"),
        (["--method", "free", "--colour", "red"], "unknown: --colour red"),
        (["--method", "free", "--epoch", "3"], "--epoch is no flag of --method free; it belongs to fast_meta"),
        (["--method", "free", "--epo", "3"], "unknown: --epo 3"),
        (["--method", "free", "--epoch", "3"], r"scratch \(did you mean --epochs\?\)"),
        (["--method", "free", "--warmpu", "3"], r"unknown: --warmpu 3 \(did you mean --warmup\?\)"),
        (["--method", "chrous"], r"did you mean chorus\?"),
        (["--method", "free", "--dataset", "minimagenet"], r"did you mean miniimagenet\?"),
        (["--method", "free", "--way_train", "0"], "expected a whole number from 1"),
        (["--method", "free", "--way_train", "five"], "five: expected a whole number from 1"),
        (["--method", "free", "--inner_lr", "nan"], "expected a finite number above 0"),
        (["--method", "free", "--start_id", "7"], "--resume"),
        (["--method", "free", "--way_train", "4"], "lower --way_train"),
        (["--method", "free", "--warmup", "2", "--epochs", "2"], "leaves none of --epochs 2"),
        (["--method", "free", "--way_test", "9"], "6 classes|5 classes"),
        (["--method", "free", "--num_sup_test", "9"], r"9 shots \+ 2 queries = 11"),
        (["--method", "free", "--way_pretrain", "4"], "python pretrain.py --dataset cifar100"),
        (["--method", "free", "--dataset", "flower"], "pretrain.py --dataset flower"),
        (["--method", "free", "--teachers", "nowhere"], "nowhere does not exist"),
        (
            ["--method", "free", "--data_root", "nowhere"],
            "write_cifar100_filelist.py --data_root nowhere; then train the teachers: python pretrain.py",
        ),
        (["--method", "free", "--device", "cuda:99"], "CUDA cards"),
        (["--method", "purer", "--synthesis_per_class", "2"], r"1 shots \+ 2 queries = 3"),
        (["--method", "purer", "--way_train", "4"], "num_class_per_task 4"),
        (["--method", "purer", "--average", "--backbone", "resnet34"], "the pool has none"),
        (["--method", "purer", "--epochs", "4"], "--epochs is no flag of --method purer"),
        (["--method", "tgr", "--grouping", "odd"], "'unlike', 'alike', 'random'"),
        (["--method", "tgr", "--way_train", "4"], "lower --way_train"),
        (["--method", "tgr", "--icfil"], "belongs to purer"),
        (["--method", "fast_meta", "--Glr", "1"], "--Glr is no flag of --method fast_meta"),
        (["--resume", "nowhere"], "no run directory"),
    ],
)
def test_mistakes_are_explained(argv: list[str], message: str, data_root: Path, tiny: list[str], tmp_path: Path) -> None:
    changed = dict(zip(tiny[::2], tiny[1::2], strict=True)) if argv and argv[0] == "--method" else {}
    changed = {flag: value for flag, value in changed.items() if flag not in argv}
    with pytest.raises(UserError, match=message):
        main.main([*argv, *[token for pair in changed.items() for token in pair]])
    assert not (tmp_path / "runs").exists()


def test_bad_teachers_show_before_a_run_begins(data_root: Path, flags_for: Flags, tmp_path: Path) -> None:
    source = data_root / "teachers" / "cifar100" / "conv4" / "3way-16px"
    pool = tmp_path / "pool"
    shutil.copytree(source, pool)
    damaged = pool / "teacher_001.pth"
    flags = [*flags_for("free"), "--teachers", str(pool)]
    for content in (damaged.read_bytes()[:500], b"", None):
        damaged.unlink()
        if content is not None:
            damaged.write_bytes(content)
        with pytest.raises(UserError, match=r"teacher_001\.pth"):
            main.main(flags)
        damaged.touch()
    manifest = pool / "teachers.csv"
    shutil.copy(source / "teacher_001.pth", damaged)
    manifest.write_text(manifest.read_text().replace("conv4,", "resnet10,"))
    with pytest.raises(UserError, match="does not fit the ResNet"):
        main.main(flags)
    assert not (tmp_path / "runs").exists()


def test_flags_that_a_resumed_run_may_not_change(flags_for: Flags, data_root: Path, tmp_path: Path) -> None:
    main.main(flags_for("random"))
    run = only_run(tmp_path)
    for flags in (["--resume", str(run), "--backbone", "resnet10"], ["--evaluate", str(run), "--inner_lr", "1"]):
        with pytest.raises(UserError, match="cannot change"):
            main.parse_args(flags)
    assert main.parse_args(["--evaluate", str(run), "--way_test", "2"]).way_test == 2
    assert main.parse_args(["--resume", str(run), "--epochs", "9"]).data_root == data_root


def test_the_command_line_prints_one_line_and_exits_2() -> None:
    done = subprocess.run(
        [sys.executable, "main.py", "--method", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown method 'nothing'")
    assert done.stderr.count("\n") == 1


def test_a_run_that_ends_before_its_first_look_has_one(flags_for: Flags, tmp_path: Path) -> None:
    """Stopped before anything was kept, and told to end where it is."""
    main.main([*flags_for("real", 3), "--no_floors", "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    checkpoint.save(checkpoint.load(run / "last.pt") | {"best": None, "best_iteration": 0}, run / "last.pt")
    for name in ("best.pt", "result.json"):
        (run / name).unlink()
    main.main(["--resume", str(run)])
    assert json.loads((run / "result.json").read_text())["selected_at"] == 3
    assert "learner" in checkpoint.load(run / "best.pt")
    for name in ("best.pt", "result.json"):
        (run / name).unlink()
    with pytest.raises(UserError, match=r"best\.pt does not exist"):
        main.main(["--resume", str(run)])


def test_a_run_cannot_end_before_it_is(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("real", 3), "--no_floors", "--run_name", "mine"])
    run = str(tmp_path / "runs" / "mine")
    with pytest.raises(UserError, match="has come to iteration 3: it cannot end before that"):
        main.main(["--resume", run, "--epochs", "2"])
    with pytest.raises(UserError, match="--epochs cannot change with --evaluate"):
        main.main(["--evaluate", run, "--epochs", "2"])
    with pytest.raises(UserError, match="leave one of them out"):
        main.main(["--evaluate", run, "--resume", run])


def test_scores_of_the_learner_of_before_are_set_aside(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("real"), "--no_floors", "--run_name", "mine"])
    run = tmp_path / "runs" / "mine"
    main.main(["--evaluate", str(run), "--num_sup_test", "2"])
    assert (run / "evaluate-3w2s.json").is_file()
    main.main(["--resume", str(run), "--epochs", "4"])
    assert not list(run.glob("evaluate-*.json"))
    assert (run / "earlier-evaluate-3w2s-1.json").is_file()


@pytest.mark.parametrize("method", ["free", "tgr", "bidf_mkd"])
def test_an_episode_that_memory_can_never_fill_is_refused(method: str, flags_for: Flags) -> None:
    with pytest.raises(UserError, match=r"queries = \d+ images of a class, and memory keeps \d+"):
        main.main([*flags_for(method), "--num_qur_train", "4000"])


def test_memory_that_never_filled_an_episode_is_said(flags_for: Flags, tmp_path: Path) -> None:
    main.main([*flags_for("free", 1), "--num_qur_kd", "1", "--num_qur_train", "9", "--no_floors"])
    assert "the learner was not meta-trained on any" in (only_run(tmp_path) / "log.txt").read_text()


def test_seeds_that_are_there_are_scored_as_the_others(flags_for: Flags) -> None:
    flags = [*flags_for("random"), "--no_floors", "--run_name", "mine", "--seeds", "1"]
    main.main(flags)
    with pytest.raises(UserError, match="with another --episode_test"):
        main.main([*flags, "2", "--episode_test", "7"])


def test_foreign_results_beside_a_run_are_nobodys_business(flags_for: Flags, tmp_path: Path) -> None:
    for number, text in enumerate(("[]", "{}", '{"method": "real"}', '{"method": 3}')):
        (tmp_path / "runs" / f"other{number}").mkdir(parents=True)
        (tmp_path / "runs" / f"other{number}" / "result.json").write_text(text)
    main.main([*flags_for("random"), "--run_name", "mine"])
    assert (tmp_path / "runs" / "mine" / "result.json").is_file()


def test_what_selected_is_said_as_it_was(flags_for: Flags, data_root: Path, tmp_path: Path) -> None:
    """Without images nothing selects, and the last iteration is kept."""
    zoo = data_root / "teachers" / "cifar100" / "conv4" / "3way-16px" / "teachers.csv"
    main.main([*flags_for("free", 1), "--teachers", str(zoo), "--data_root", str(tmp_path / "none"), "--run_name", "mine"])
    assert json.loads((tmp_path / "runs" / "mine" / "result.json").read_text())["selected_on"] == "last"


def test_images_and_teachers_that_moved(flags_for: Flags, data_root: Path, tmp_path: Path) -> None:
    before, now = tmp_path / "before", tmp_path / "now"
    shutil.copytree(data_root / "cifar100", before / "cifar100")
    shutil.copytree(data_root / "teachers" / "cifar100" / "conv4" / "3way-16px", before / "zoo")
    main.main([*flags_for("free", 1), "--data_root", str(before), "--teachers", str(before / "zoo"), "--run_name", "mine"])
    before.rename(now)
    run = tmp_path / "runs" / "mine"
    moved = ["--data_root", str(now), "--teachers", str(now / "zoo")]
    main.main(["--evaluate", str(run), *moved])
    main.main(["--resume", str(run), "--epochs", "2", *moved])
    assert json.loads((run / "result.json").read_text())["teachers"] == 2


def test_an_empty_folder_may_become_a_run(flags_for: Flags, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    main.main([*flags_for("random"), "--no_floors", "--run_name", "mine"])
    assert (tmp_path / "runs" / "mine" / "result.json").is_file()
