"""Meta-train a learner, or distil a student, without data: `python main.py --method free --dataset cifar100`."""

if __name__ == "__main__":
    from utils.interrupts import stop_with_a_sentence

    stop_with_a_sentence()  # before the slow imports

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from methods import METHODS, get_method
from methods.base import Method
from methods.few_shot import FewShotMethod
from methods.loop import Training, dry_run
from methods.report import report_result
from methods.report_top1 import report_student
from methods.teachers.pretraining import Recipe, pretrain_pools
from utils import cli, distributed, seed
from utils.errors import UserError
from utils.run_log import RunLog, SilentLog

REPORTS: dict[str, Callable[..., None]] = {"few_shot": report_result, "classification": report_student}  # by task
# What may be typed again beside --resume and --evaluate; all else is the run's own.
CHANGEABLE = set("resume evaluate device gpu multigpu threads epochs episode_train episode_test out judge".split())
CHANGEABLE_IN_EVALUATION = {"way_test", "shot_test", "query_test", "test_inner_steps"}


def build_parser(method: str) -> cli.Parser:
    """The parser of one method: shared flags with its defaults, and its own."""
    method_class = get_method(method)
    parser = cli.Parser(f"main.py --method {method}", description=method_class.PAPER or method_class.__doc__)
    _add_shared_flags(parser, method_class)
    method_class.add_args(parser.add_argument_group(method))
    parser.set_defaults(method=method, **method_class.SHARED_DEFAULTS)
    return parser


def _add_shared_flags(parser: cli.Parser, method_class: type[Method]) -> None:
    parser.add_argument("--method", help=f"{', '.join(METHODS)}; with --help it shows the method's own flags too")
    cli.add_machine_flags(parser)
    method_class.add_shared_args(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--out", type=Path, default=Path("runs"), help="folder of run directories")
    group.add_argument("--run_name", help="name of the run directory; must be new")
    group.add_argument("--overwrite", action="store_true", help="replace the run of that name, if there is one")
    group.add_argument(
        "--seeds", type=int, nargs="+", help="several runs, one for each seed; python -m utils.report sums them up"
    )
    group.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped")
    group.add_argument("--evaluate", type=Path, metavar="RUN", help="score a run's learner again")
    group.add_argument("--dry_run", action="store_true", help="show what would be done and how long it would take")


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; no side effects but reading RUN/args.json. Raises `UserError` for one that is wrong.

    Two stages: the method is read first, then its own parser takes the whole line.
    """
    argv = cli.underscored(argv)
    first = cli.Parser("main.py", add_help=False)
    first.add_argument("--method")
    first.add_argument("--resume", type=Path)
    first.add_argument("--evaluate", type=Path)
    early, _ = first.parse_known_args(argv)
    run = early.resume or early.evaluate
    if run is not None:
        return _parse_again(argv, run, evaluating=early.resume is None)
    if early.method is None:
        if {"-h", "--help"} & set(argv):
            shared = cli.Parser("main.py", description=__doc__)
            _add_shared_flags(shared, FewShotMethod)
            shared.print_help()
            raise SystemExit(0)
        raise UserError(f"--method is missing: choose from {', '.join(METHODS)} (main.py --method NAME --help shows its flags)")
    method = early.method.replace("-", "_")
    args = _parse_known(build_parser(method), argv)
    args.method = method
    get_method(method).finish_args(args)
    return args


def _parse_known(parser: cli.Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse; a flag of another method is refused with the name of the method it belongs to."""
    args, unknown = parser.parse_known_args(argv)
    for token in unknown:
        flag = token.split("=")[0]
        owners = [name for name in METHODS if flag in cli.flags_of(build_parser(name))]
        if owners:
            raise UserError(f"{flag} is no flag of --method {args.method}; it belongs to {', '.join(owners)}")
    if unknown:
        parser.error(f"unknown: {' '.join(unknown)}")
    return args


def _parse_again(argv: Sequence[str], run: Path, evaluating: bool) -> argparse.Namespace:
    """The flags of an earlier run, with the few changes that are allowed."""
    saved = RunLog.read_flags(run)
    parser = build_parser(saved["method"])
    allowed = CHANGEABLE | CHANGEABLE_IN_EVALUATION | set(get_method(saved["method"]).EXAM_FLAGS) if evaluating else CHANGEABLE
    known = cli.flags_of(parser)
    for token in argv:
        flag = token.split("=")[0]
        if flag in known and known[flag] not in allowed:
            raise UserError(f"{flag} cannot change with {'--evaluate' if evaluating else '--resume'}: {run} has its own value")
    parser.set_defaults(**saved)
    args = _parse_known(parser, argv)
    get_method(args.method).restore_args(args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_args(argv)
    cli.say_without_effect(args)
    with distributed.joined(cli.prepare_machine(args)) as device:
        _run_all(args, argv, device)


def _run_all(args: argparse.Namespace, argv: Sequence[str], device: torch.device) -> None:
    """One run, or one for each seed."""
    if args.seeds is None:
        run(args, argv, device)
        return
    name = args.run_name or get_method(args.method).default_name(args)
    for number in args.seeds:
        run(
            argparse.Namespace(**vars(args) | {"seed": number, "seeds": None, "run_name": f"{name}-seed{number}"}), argv, device
        )


def run(args: argparse.Namespace, argv: Sequence[str], device: torch.device) -> None:
    """What one command line asks for: a run, a rehearsal, teachers, or a second look at a run."""
    seed.seed_everything(args.seed)
    if getattr(args, "pretrain", False):
        pretrain_pools(args, Recipe(), device)
        return
    method = get_method(args.method)(args, device)
    if args.dry_run:
        print(dry_run(method))
        return
    log = _open_log(args, argv)
    training = Training(method, log)
    if args.resume or args.evaluate:
        training.restore()
    report = REPORTS[method.TASK]
    if args.evaluate:
        report(method, log, training.seconds, "evaluate")
        return
    with log.stoppable(new=not args.resume):
        training.run()
        report(method, log, training.elapsed)
    log.close()
    print(f"everything is in {log.folder}")


def _open_log(args: argparse.Namespace, argv: Sequence[str]) -> RunLog:
    if args.resume or args.evaluate:
        return (SilentLog if distributed.rank() else RunLog)(args.resume or args.evaluate)
    if distributed.rank():
        return SilentLog(Path(distributed.from_first("")))
    name = args.run_name or get_method(args.method).default_name(args)
    log = RunLog.create(args.out, name, bool(args.run_name), vars(args), argv, args.overwrite)
    distributed.from_first(str(log.folder))
    return log


if __name__ == "__main__":
    cli.exit_with_message(main)
