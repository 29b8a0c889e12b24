"""The command line of main.py: one parser for each method, chosen by `--method`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from methods import METHODS, get_method, spelled
from methods.experiments.few_shot import FewShotExperiment, FewShotMethod
from methods.experiments.method import Method
from methods.experiments.settings import settings_for
from methods.experiments.whole_class import WholeClassExperiment
from methods.runs.config import chosen, read_config
from methods.runs.run_log import RunLog
from methods.teachers.manifest import as_place, is_own_code
from utils import cli
from utils.code import is_code
from utils.errors import UserError
from utils.names import meant

Experiment = FewShotExperiment | WholeClassExperiment
EXPERIMENTS: dict[str, type[Experiment]] = {  # by task
    "few_shot": FewShotExperiment,
    "classification": WholeClassExperiment,
}
MATTER_MOST = {  # the flags that --help shows beside a method's own
    "help", "method", "dataset", "teachers", "pre_model_num", "testdataset", "way_train", "shot_train", "shot_test",
    "backbone", "metalearner", "epochs", "episode_train", "seed", "device", "threads",
    "teacher", "student", "batch_size", "lr",
    "run_name", "seeds", "config", "resume", "evaluate", "settings", "dry_run",
}  # fmt: skip
HELP = {"-h", "--help", "--help_all"}
ABOUT = "Meta-train a learner, or distil a student, without data: `python main.py --method free --dataset cifar100`."


def experiment_of(method_class: type[Method]) -> type[Experiment]:
    """What wires and runs a method of that task."""
    return EXPERIMENTS[method_class.TASK]


def build_parser(method: str) -> cli.Parser:
    """The parser of one method: shared flags with its defaults, and its own."""
    method_class = get_method(method)
    about = method_class.PAPER or method_class.__doc__
    parser = cli.Parser(f"main.py --method {method}", description=about, first=MATTER_MOST, group=method)
    _add_shared_flags(parser, method_class)
    method_class.add_args(parser.add_argument_group(method))
    _check_defaults(parser, method_class)
    parser.set_defaults(**method_class.SHARED_DEFAULTS)
    return parser


def _check_defaults(parser: cli.Parser, method_class: type[Method]) -> None:
    """Raise `UserError` where a method has a value for a flag that there is not, by the names under which flags are stored."""
    rows = [row for setting in method_class.SETTINGS for row in (setting.when, setting.values)]
    stored = {action.dest for action in parser._actions}
    for row in (method_class.SHARED_DEFAULTS, method_class.QUICK, *rows):
        if strange := next((name for name in row if name not in stored), None):
            raise UserError(f"{method_class.__name__} has a value for {strange!r}, which is no flag{meant(strange, stored)}")


def _add_shared_flags(parser: cli.Parser, method_class: type[Method]) -> None:
    parser.add_argument(
        "--method", help=f"{', '.join(METHODS)}, or FILE.py:CLASS of yours; with --help it shows the method's own flags too"
    )
    cli.add_machine_flags(parser)
    experiment_of(method_class).add_flags(parser, method_class)  # type: ignore[arg-type]
    group = parser.add_argument_group("run")
    out = group.add_argument("--out", type=Path, default=Path("runs"), help="folder of run directories")
    group.add_argument("--run_name", help="name of the run directory; must be new")
    group.add_argument("--overwrite", action="store_true", help="replace the run of that name, if there is one")
    group.add_argument(
        "--seeds", type=cli.seed, nargs="+", help="several runs, one for each seed, and their mean; typed again, it goes on"
    )
    group.add_argument("--config", type=Path, metavar="FILE", help="YAML or JSON with values of flags, as runs write them")
    resume = group.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run that was stopped")
    evaluate = group.add_argument("--evaluate", type=Path, metavar="RUN", help="score a run's learner again")
    group.add_argument(
        "--settings",
        choices=("paper", "quick"),
        default="paper",
        help="whose defaults: the paper's own scripts', or a short run's",
    )
    group.add_argument("--dry_run", action="store_true", help="show what would be done and how long it would take")
    cli.may_change("always", out, resume, evaluate)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; no side effects but reading RUN/args.json and --config. Raises `UserError` for one that is wrong.

    Two stages: the method is read first, then its own parser takes the whole line.
    """
    args = parse_typed(argv)
    if not (args.resume or args.evaluate):
        method_class = get_method(args.method)
        experiment_of(method_class).finish_args(method_class, args)  # type: ignore[arg-type]
    return args


def parse_typed(argv: Sequence[str]) -> argparse.Namespace:
    """The same before what depends on other flags is filled in."""
    argv = cli.underscored(argv)
    first = cli.Parser("main.py", add_help=False)
    first.add_argument("--method")
    first.add_argument("--resume", type=Path)
    first.add_argument("--evaluate", type=Path)
    first.add_argument("--allow_code", action="extend", nargs="+", default=[])
    first.add_argument("--config", type=Path)
    early, _ = first.parse_known_args(argv)
    run = early.resume or early.evaluate
    if early.resume and early.evaluate:
        raise UserError("--resume goes on with a run and --evaluate scores one: leave one of them out")
    if run is not None:
        return _parse_again(argv, run, early)
    config = read_config(early.config) if early.config else {}
    early.method = early.method or config.get("method")
    if early.method is None:
        if HELP & set(argv):
            shared = cli.Parser("main.py", description=ABOUT, first=MATTER_MOST)
            _add_shared_flags(shared, FewShotMethod)
            shared.parse_known_args(argv)
        raise UserError(f"--method is missing: choose from {', '.join(METHODS)} (main.py --method NAME --help shows its flags)")
    method = spelled(str(early.method))
    _check_allowed(method, early)
    method_class, parser = get_method(method), build_parser(method)
    flags = cli.flags_of(parser)
    typed = {flags[flag] for token in argv if (flag := token.split("=")[0]) in flags}
    from_file = chosen(parser, config, early.config, typed)
    for place in map(str, from_file.get("teachers") or []):
        if is_own_code(place) and place not in early.allow_code:
            raise UserError(f"{early.config} runs code, teachers {place}; if it is yours, add --allow_code {place}")
    parser.set_defaults(**from_file)
    try:
        asked = _parse_known(parser, [word for word in argv if word not in HELP])  # help shows the defaults that hold
    except UserError:
        _parse_known(parser, argv)  # whoever asks for help gets it
        raise
    found = settings_for(method_class.SETTINGS, method_class.QUICK, asked)
    parser.set_defaults(**found | from_file)
    args = _parse_known(parser, argv)
    args.method = method
    return args


def _parse_known(parser: cli.Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse; a flag of another method is refused with the name of the method it belongs to."""
    args, unknown = parser.parse_known_args(argv)
    for token in unknown:
        flag = token.split("=")[0]
        owners = [name for name in METHODS if flag in cli.flags_of(build_parser(name))]
        if owners:
            asked = meant(flag, cli.flags_of(parser))
            raise UserError(
                f"{flag} is no flag of {parser.prog.removeprefix('main.py ')}; it belongs to {', '.join(owners)}{asked}"
            )
    if unknown:
        parser.refuse(unknown)
    return args


def _check_allowed(method: str, early: argparse.Namespace) -> None:
    """Raise `UserError` where a method is code of the user's that this very command line does not allow to run."""
    if is_code(method) and method not in early.allow_code:
        raise UserError(f"--method {method} runs code; if it is yours, add --allow_code {method}")


def _from_elsewhere(parser: cli.Parser, saved: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Relative paths of a saved run, read from the `folder` it was started in where they exist there."""

    def found(place: str) -> str:
        there = Path(folder) / place
        try:
            here = Path(place).exists() and there.exists() and Path(place).samefile(there)
            return str(there) if folder and there.exists() and not here else place
        except OSError:  # somebody else's folder, which nobody may look into
            return place

    paths = {action.dest for action in parser._actions if action.type in (Path, as_place)}
    return {
        name: found(value) if isinstance(value, str) else [found(place) for place in value]
        for name, value in saved.items()
        if name in paths and value
    }


def _out_of(run: Path, name: str | None) -> Path:
    """The folder of runs above a run directory, whose name may have several parts (--run_name a/b)."""
    here, parts = run.absolute(), Path(name or "").parts  # a link is not followed: what it kept lies beside the link
    deep = len(parts) > 1 and here.parts[-len(parts) :] == parts and not Path(*parts).is_absolute()
    return here.parents[len(parts) - 1] if deep else here.parent


def _parse_again(argv: Sequence[str], run: Path, early: argparse.Namespace) -> argparse.Namespace:
    """The flags of an earlier run, with the few changes that are allowed."""
    record, evaluating = RunLog.read_record(run), early.resume is None
    saved = dict(record["flags"])
    saved["allow_code"] = None  # what may run is said anew each time: a run directory may be somebody else's
    if not isinstance(saved.get("method"), str):
        raise UserError(f"{run}/args.json is damaged: it names no method")
    _check_allowed(saved["method"], early)
    parser = build_parser(saved["method"])
    cli.check_values(parser, saved, f"{run}/args.json")
    saved["out"] = str(_out_of(run, saved.get("run_name")))  # where what it kept lies
    allowed, known, typed = cli.changeable(parser, evaluating), cli.flags_of(parser), set()
    for token in argv:
        flag = token.split("=")[0] if token.startswith("--") else token[:2]  # -b32, too
        typed |= {known[flag]} if flag in known else set()
        if flag in known and known[flag] not in allowed:
            raise UserError(f"{flag} cannot change with {'--evaluate' if evaluating else '--resume'}: {run} has its own value")
    saved = {name: value for name, value in saved.items() if name not in typed}  # what may be repeated would be added
    for place in saved.get("teachers") or []:
        if is_own_code(place) and place not in early.allow_code:
            raise UserError(f"{run} runs code, --teachers {place}; if it is yours, add --allow_code {place}")
    experiment = experiment_of(get_method(saved["method"]))
    parser.set_defaults(**experiment.EARLIER | saved | _from_elsewhere(parser, saved, record["working_folder"]))
    args = _parse_known(parser, argv)
    experiment.restore_args(args)
    return args
