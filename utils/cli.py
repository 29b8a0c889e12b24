"""The command line: spelling, errors, devices and threads. Which flags exist is the business of those who read them."""

import argparse
import ctypes
import errno
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import torch

from utils.errors import Stopped, UserError
from utils.interrupts import interruptible
from utils.names import meant

WITHOUT_EFFECT, MAY_CHANGE = "reason_for_no_effect", "may_change_when"  # marks on flags


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to each help text, except where it is None: the text itself says then what happens."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _HelpAll(argparse.Action):
    """Shows every flag, and leaves."""

    def __call__(self, parser: argparse.ArgumentParser, *values: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        parser.first = frozenset()
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser that takes flags unabbreviated, spelled with hyphens or underscores, and raises `UserError` instead
    of leaving the program.

    first: names of the flags that --help shows, beside a whole `group`; --help_all then shows all.
    """

    def __init__(
        self, prog: str, description: str | None = None, add_help: bool = True, first: Collection[str] = (), group: str = ""
    ) -> None:
        super().__init__(prog, description=description, add_help=add_help, allow_abbrev=False, formatter_class=HelpFormatter)
        self.first, self.whole_group = frozenset(first), group
        if first:
            self.add_argument("--help_all", action=_HelpAll, nargs=0, dest=argparse.SUPPRESS, help="show every option and exit")

    def format_help(self) -> str:
        """What --help prints."""
        if not self.first:
            return super().format_help()
        formatter, shown = self._get_formatter(), 0
        formatter.add_text(f"usage: {self.prog} [options]")
        formatter.add_text(self.description)
        for group in self._action_groups:
            actions = [one for one in group._group_actions if one.dest in self.first or group.title == self.whole_group]
            formatter.start_section(group.title)
            formatter.add_arguments(actions)
            formatter.end_section()
            shown += len(actions)
        formatter.add_text(f"{len(self._actions) - shown} more options: --help_all")
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(  # type: ignore[override]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does; without `args`, what was typed."""
        return super().parse_known_args(underscored(sys.argv[1:] if args is None else args), namespace)

    def parse_args(  # type: ignore[override]
        self, args: Iterable[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """As argparse does, with a question about what was meant by what nobody knows."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown)
        return parsed

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Raise `UserError` for what is left of a command line."""
        flag = next((token.split("=")[0] for token in unknown if token.startswith("--")), "")
        self.error(f"unknown: {' '.join(unknown)}{meant(flag, flags_of(self))}")


def underscored(argv: Iterable[str]) -> list[str]:
    """Spell every flag with underscores: `--batch-size` and `--batch_size` are the same flag."""
    spelled, flags = [], True
    for token in argv:
        flags = flags and token != "--"  # behind which stand words as they are
        if flags and token.startswith("--"):
            name, equals, value = token.partition("=")
            token = "--" + name[2:].replace("-", "_") + equals + value
        spelled.append(token)
    return spelled


LARGEST_NUMBER = 1e30  # that 32 bits can still reckon with


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of a flag whose value must be a whole number from `low`, and to `high` where there is an end."""

    def value_of(text: str) -> int:
        to = "" if high is None else f" to {high}"
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {low}{to}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number from {low}{to}")
        return value

    return value_of


def number(low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER, above: bool = False) -> Callable[[str], float]:
    """The type of a flag whose value must be a finite number from `low` (or `above` it) to `high`."""
    least = "" if low == -LARGEST_NUMBER else f" above {low:g}" if above else f" from {low:g}"
    most = "" if high == LARGEST_NUMBER else f" to {high:g}"

    def value_of(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text}: expected a finite number{least}{most}")
        return value

    return value_of


MACHINE = frozenset({"device", "gpu", "multigpu", "threads"})  # flags about where a run takes place
LARGEST_SEED = 2**32 - 1  # that all random streams take
LARGEST_SIDE = 4096  # pixels of an image
MOST_THREADS = 1024
count = whole(1)
rate = number(0, above=True)
weight = number()
pixels = whole(1, LARGEST_SIDE)
seed = whole(0, LARGEST_SEED)


def exit_with_message(work: Callable[[], None]) -> None:
    """Run `work`; turn a `UserError` into one line on stderr and exit status 2, being stopped into status 130.

    So is what the operating system refuses (a full disk, a file without permission); what was whole before is whole still.
    """
    interruptible()
    try:
        for word in sys.argv:
            _check_word(word)
        work()
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(130)
    except (UserError, OSError) as error:
        full = ": the disk is full, make room and go on" if getattr(error, "errno", None) == errno.ENOSPC else ""
        print("error: " + " ".join(str(error).split()) + full, file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, KeyboardInterrupt):  # as imports pass it on
            raise
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _check_word(word: str) -> None:
    """Raise `UserError` for what was typed and cannot be written into any file."""
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{os.fsencode(word)!r} is not UTF-8: rename it, or type another name") from error


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """--device, --gpu, --multigpu, --threads, --tf32, --deterministic, --seed."""
    group = parser.add_argument_group("machine")
    may_change(
        "always",
        group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<card>"),
        group.add_argument("--gpu", type=whole(0), help="use the k-th card of --multigpu (without it: card k)"),
        group.add_argument("--multigpu", help="comma-separated cards that may be used, as the papers' scripts type it"),
        group.add_argument("--threads", type=whole(0, MOST_THREADS), default=0, help="CPU threads; 0: OMP_NUM_THREADS, or all"),
        group.add_argument("--tf32", action="store_true", help="let a card round what it multiplies to 10 bits, and be faster"),
        group.add_argument("--deterministic", action="store_true", help="let a card compute alike each time, and be slower"),
    )
    group.add_argument("--seed", type=seed, default=0, help="seed of everything random")


def select_device(args: argparse.Namespace) -> torch.device:
    """The one device of a run. Raises `UserError` for a card that is not there."""
    cards = torch.cuda.device_count()
    if args.device != "auto":
        try:
            device = torch.device(args.device)
        except RuntimeError as error:
            raise UserError(f"--device {args.device} is no device: choose auto, cpu, cuda or cuda:<card>") from error
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"--device {args.device}: nothing here was ever tried on such a device; choose cpu, cuda or auto")
        if device.type == "cuda" and (device.index or 0) >= cards:
            raise UserError(f"--device {args.device}: this machine has {cards} CUDA cards; try --device cpu")
        return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
    if args.gpu is None and args.multigpu is None:
        return torch.device("cuda:0" if cards else "cpu")
    card = _chosen_card(args)
    if cards == 0:
        print("warning: no CUDA card here, running on the CPU", file=sys.stderr)
        return torch.device("cpu")
    if card >= cards:
        raise UserError(f"card {card} (--multigpu {args.multigpu} --gpu {args.gpu}) is missing: this machine has {cards}")
    return torch.device(f"cuda:{card}")


def _chosen_card(args: argparse.Namespace) -> int:
    position = args.gpu or 0
    if args.multigpu is None:
        return position
    try:
        listed = [int(card) for card in args.multigpu.split(",")]
        return listed[position]
    except ValueError as error:
        raise UserError(f"--multigpu {args.multigpu}: expected card numbers separated by commas") from error
    except IndexError as error:
        raise UserError(f"--gpu {position} picks beyond the {len(listed)} cards of --multigpu {args.multigpu}") from error


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks instead of returning each to the system.

    Every training step frees and takes the same megabytes; handing them back and faulting them in again costs a CPU
    run a quarter of its time. Elsewhere than under glibc this does nothing.
    """
    trim_threshold, mmap_max = -1, -4  # names of the two settings in malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def prepare_machine(args: argparse.Namespace) -> torch.device:
    """Set threads, memory and what a card may round, and return the device."""
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.tf32
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the card is first used
        torch.use_deterministic_algorithms(True)
    if args.threads:
        torch.set_num_threads(args.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    device = select_device(args)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def without_effect(group: argparse._ActionsContainer, *spellings: str, reason: str, **more: Any) -> None:
    """A flag that other programs' scripts type and that does nothing here; `say_without_effect` says why, once."""
    action = group.add_argument(*spellings, default=None, help="accepted for the papers' scripts", **more)
    setattr(action, WITHOUT_EFFECT, reason)


def names_without_effect(parser: argparse.ArgumentParser) -> set[str]:
    """The names under which accepted flags that do nothing are stored."""
    return {action.dest for action in parser._actions if hasattr(action, WITHOUT_EFFECT)}


def say_without_effect(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Print one line for each accepted flag that was typed and does nothing."""
    for action in parser._actions:
        reason = getattr(action, WITHOUT_EFFECT, None)
        if reason and getattr(args, action.dest, None) is not None:
            print(f"note: --{action.dest} has no effect: {reason}", file=sys.stderr)


def may_change(when: str, *actions: argparse.Action) -> None:
    """Mark flags as ones that may be typed again beside --resume and --evaluate ("always"), or one of them (its name)."""
    for action in actions:
        setattr(action, MAY_CHANGE, when)


def changeable(parser: argparse.ArgumentParser, evaluating: bool) -> set[str]:
    """The names of the flags that may be typed again."""
    allowed = ("always", "evaluate" if evaluating else "resume")
    return {action.dest for action in parser._actions if getattr(action, MAY_CHANGE, None) in allowed}


def check_values(parser: argparse.ArgumentParser, values: Mapping[str, Any], source: str) -> None:
    """Raise `UserError` naming `source` where values that were kept as JSON are none that the flags could have given."""
    for action in parser._actions:
        value = values.get(action.dest)
        if value is not None and not _could_give(action, value):
            raise UserError(f"{source}: --{action.dest} is {value!r}, which the flag does not take")


def takes_several(action: argparse.Action) -> bool:
    """Whether a flag's value is a list of what its type makes of a word each."""
    return action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)


def _could_give(action: argparse.Action, value: Any) -> bool:
    if action.nargs == 0:
        return isinstance(value, bool) or value == action.const
    if isinstance(value, list) and not takes_several(action):
        return isinstance(action.default, list)  # out of one word
    return all(_could_be(action, one) for one in (value if isinstance(value, list) else [value]))


def _could_be(action: argparse.Action, value: Any) -> bool:
    if isinstance(value, (dict, list, bool)) or (action.choices is not None and value not in action.choices):
        return False
    if not callable(action.type):
        return isinstance(value, str)
    try:
        return action.type(str(value)) == value or isinstance(value, str)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False


def flags_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Every spelling of every flag of `parser`, and the name its value is stored under."""
    return {flag: action.dest for action in parser._actions for flag in action.option_strings}
