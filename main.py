"""Meta-train a learner, or distil a student, without data: `python main.py --method free --dataset cifar100`."""

if __name__ == "__main__":
    from utils.interrupts import stop_with_a_sentence

    stop_with_a_sentence()  # before the slow imports

import sys
from collections.abc import Sequence

from methods.runs.arguments import build_parser, parse_args
from methods.runs.launch import launch
from utils import cli

__all__ = ["build_parser", "main", "parse_args"]


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    launch(parse_args(argv), argv)


if __name__ == "__main__":
    cli.exit_with_message(main)
