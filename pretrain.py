"""Train a pool of teachers: `python pretrain.py --dataset cifar100 --pre_backbone conv4`."""

import argparse
import sys
from collections.abc import Sequence

from methods.teachers.manifest import add_pool_flags
from methods.teachers.pretraining import add_recipe_flags, pretrain_pools, recipe_from
from utils import cli


def build_parser() -> cli.Parser:
    parser = cli.Parser("pretrain.py", description=__doc__)
    cli.add_machine_flags(parser)
    add_pool_flags(parser)
    add_recipe_flags(parser)
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; no side effects. Raises `UserError` for one that is wrong."""
    return build_parser().parse_args(cli.underscored(argv))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    pretrain_pools(args, recipe_from(args), cli.prepare_machine(args), args.overwrite)


if __name__ == "__main__":
    cli.exit_with_message(main)
