"""Work on teachers themselves.

python -m methods.teachers check zoo.csv                # can every teacher of a list be used?
python -m methods.teachers serve --dataset cifar100     # a pool as a service over HTTP
"""

import sys
from collections.abc import Sequence

from methods.runs.check_teachers import add_check_flags, check
from methods.runs.serve import add_serve_flags, serve
from methods.teachers.manifest import as_place
from utils import cli
from utils.errors import UserError

COMMANDS = {
    "serve": (add_serve_flags, serve, "serve a pool of teachers over HTTP"),
    "check": (add_check_flags, check, "load every teacher of a list and say whether it can be used"),
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in COMMANDS:
        listed = "; ".join(f"{name}: {about}" for name, (_, _, about) in COMMANDS.items())
        raise UserError(f"python -m methods.teachers COMMAND [FLAGS]: expected a command ({listed})")
    add_flags, work, about = COMMANDS[argv[0]]
    parser = cli.Parser(f"python -m methods.teachers {argv[0]}", description=about)
    add_flags(parser)
    args = parser.parse_args(argv[1:])
    if getattr(args, "place", None):
        args.teachers = [*(args.teachers or []), as_place(args.place)]
    work(args)
