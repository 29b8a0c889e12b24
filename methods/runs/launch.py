"""What one command line of main.py asks for: a run, several, a dry run, teachers, or a run's learner scored again."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from methods import get_method
from methods.runs.arguments import build_parser, experiment_of, parse_typed
from methods.runs.config import NAME, changed, config_of, note_changes
from methods.runs.few_shot_result import report_learner
from methods.runs.plan import dry_run, opening
from methods.runs.run_log import RunLog, SilentLog
from methods.runs.scores import NO_RESULTS, in_terminal, read_run
from methods.runs.training import Training
from methods.runs.whole_class_result import report_student
from methods.teachers.pretraining import Recipe, pretrain_pools
from utils import cli, distributed, seed
from utils.errors import UserError

REPORTS: dict[str, Callable[..., dict[str, float]]] = {"few_shot": report_learner, "classification": report_student}  # by task


def launch(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Do what `args`, parsed from `argv`, ask for: once, or for each of --seeds, of which those that are there go on."""
    if not (args.resume or args.evaluate):  # then it was said
        cli.say_without_effect(build_parser(args.method), args)
    with distributed.joined(cli.prepare_machine(args)) as device:
        if args.seeds is None:
            _launch(args, argv, device)
            return
        runs = [_of_seed(args, number) for number in args.seeds]
        for one in runs:
            if args.dry_run and (one.out / one.run_name / "result.json").is_file() and not args.overwrite:
                print(f"{one.out / one.run_name} is finished")
                continue
            _launch(one, argv, device)
        if distributed.rank() == 0 and not args.dry_run:
            finished = [run for one in runs if (run := read_run(one.out / one.run_name)).result.get("evaluated")]
            print(in_terminal(finished) if finished else "no run has a score")


def _of_seed(args: argparse.Namespace, number: int) -> argparse.Namespace:
    """The command line for one of --seeds: a new run, or the one that has begun. Raises `UserError` where that was another."""
    change: dict[str, Any] = {"seed": number, "seeds": None, "run_name": f"{_name(args)}-seed{number}"}
    one = argparse.Namespace(**vars(args) | change)
    folder = one.out / one.run_name
    if folder.is_dir() and any(folder.iterdir()) and not args.overwrite:
        longer = {"epochs", "episode_train"}  # a run may go on, and not be scored on other episodes than its neighbours
        may_differ = longer | NO_RESULTS | cli.names_without_effect(build_parser(args.method))
        differ = changed(RunLog.read_flags(folder), one, vars(one).keys() - may_differ)
        if differ:
            others = ", ".join(f"--{name}" for name in differ)
            raise UserError(f"{folder} is a run with another {others}: choose another --run_name, or --overwrite to replace it")
        one.resume = folder
    return one


def _name(args: argparse.Namespace) -> str:
    method_class = get_method(args.method)
    return args.run_name or experiment_of(method_class).default_name(method_class, args)  # type: ignore[arg-type]


def _launch(args: argparse.Namespace, argv: Sequence[str], device: torch.device) -> None:
    seed.seed_everything(args.seed)
    method_class = get_method(args.method)
    if getattr(args, "pretrain", False):  # a flag of few-shot methods
        pretrain_pools(args, Recipe(method_class.TEACHER_EPOCHS), device)  # type: ignore[attr-defined]
        return
    experiment = experiment_of(method_class)(method_class, args, device)  # type: ignore[arg-type]
    if args.dry_run:
        print(dry_run(experiment))
        return
    log = _open_log(args, argv)
    training, report = Training(experiment, log), REPORTS[method_class.TASK]
    if args.resume or args.evaluate:
        training.restore()
    if args.resume and training.iteration >= experiment.num_iterations and (log.folder / "result.json").is_file():
        print(f"{log.folder} is finished, {training.iteration} iterations: --evaluate scores it again, more --epochs go on")
        return
    if args.evaluate:
        log.check_kept_learner()
        report(experiment, log, training.seconds, again=True)
        return
    with log.alone(), log.stoppable(new=not args.resume):
        if args.resume:
            note_changes(build_parser(args.method), args, log)
        log.say(opening(experiment, log.folder, training.iteration))
        training.run()
        scores = report(experiment, log, training.elapsed)
        log.final_scores(vars(args), {f"meta_test/{name}": score for name, score in scores.items()})
    log.close()
    print(f"everything is in {log.folder}")


def _open_log(args: argparse.Namespace, argv: Sequence[str]) -> RunLog:
    if args.resume or args.evaluate:
        return (SilentLog if distributed.rank() else RunLog)(args.resume or args.evaluate)
    if distributed.rank():
        return SilentLog(Path(distributed.from_first("")))
    log = RunLog.create(args.out, _name(args), bool(args.run_name), vars(args), argv, args.overwrite)
    typed = argparse.Namespace(**vars(parse_typed(argv)) | {"seed": args.seed})
    with log.stoppable(new=True):
        log.write(NAME, config_of(build_parser(args.method), typed))
    distributed.from_first(str(log.folder))
    return log
