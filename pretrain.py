"""Train a pool of teachers: `python pretrain.py --dataset cifar100 --pre_backbone conv4`.

With `--full` one teacher of all classes of a set: `python pretrain.py --full --model wrn40_2 --dataset cifar10`, which is
`main.py --method scratch` with a file in checkpoints/pretrained at the end.
"""

if __name__ == "__main__":
    from utils.interrupts import stop_with_a_sentence

    stop_with_a_sentence()  # before the slow imports

import argparse
import sys
from collections.abc import Sequence

from methods.runs import arguments
from methods.runs.launch import launch
from methods.teachers.manifest import add_pool_flags
from methods.teachers.pretraining import add_recipe_flags, pretrain_pools, recipe_from
from utils import cli, distributed


def build_parser() -> cli.Parser:
    parser = cli.Parser("pretrain.py", description=__doc__)
    cli.add_machine_flags(parser)
    parser.add_argument("--full", action="store_true", help="one teacher of a whole set (--full --help shows its flags)")
    add_pool_flags(parser)
    add_recipe_flags(parser)
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; no side effects. Raises `UserError` for one that is wrong."""
    argv = cli.underscored(argv)
    return arguments.parse_args(_of_scratch(argv)) if "--full" in argv else build_parser().parse_args(argv)


def _of_scratch(argv: Sequence[str]) -> list[str]:
    """The command line of main.py that `--full` stands for; a run that goes on, or is scored again, knows its method."""
    rest = [token for token in argv if token != "--full"]
    return rest if {"--resume", "--evaluate"} & {token.split("=")[0] for token in rest} else ["--method", "scratch", *rest]


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_args(argv)
    if "--full" in argv:
        launch(args, _of_scratch(argv))
        return
    if args.num_class_per_task and args.pre_model_num:
        print("note: --num_class_per_task deals all classes out; --pre_model_num has no effect", file=sys.stderr)
    with distributed.joined(cli.prepare_machine(args)) as device:
        pretrain_pools(args, recipe_from(args), device, args.overwrite)


if __name__ == "__main__":
    cli.exit_with_message(main)
