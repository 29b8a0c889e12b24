"""A whole experiment in one file: every run writes its own, config.yaml, and --config takes it, whole or in part."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from utils import cli
from utils.errors import UserError
from utils.names import meant

NAME = "config.yaml"
HEADER = "# The flags of this run: python main.py --config {name} repeats it. What is typed besides takes precedence.\n"
OF_ONE_RUN = {"allow_code", "config", "dry_run", "evaluate", "out", "overwrite", "resume", "run_name", "seeds"}


def read_config(path: Path) -> dict[str, Any]:
    """The flags and values of a YAML or JSON file. Raises `UserError` where there is none, or where it is damaged."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"--config {path}: expected lines like `epochs: 50`, a flag's name and its value")
    return content


def chosen(parser: argparse.ArgumentParser, config: Mapping[str, Any], source: Path, typed: set[str]) -> dict[str, Any]:
    """The values of a file as `parser` gives them, by the names under which it stores them, without flags that are `typed`.

    Raises `UserError` for a name that is no flag, one that cannot stand in a file, and for a value that the flag does not take.
    """
    flags = cli.flags_of(parser)
    found: dict[str, Any] = {}
    for name, value in config.items():
        flag = cli.underscored([f"--{name}"])[0]
        stored = flags.get(flag, name if name in flags.values() else None)
        if stored is None or stored in OF_ONE_RUN:
            why = f"is no flag{meant(flag, flags)}" if stored is None else "is typed, and not kept in a file"
            raise UserError(f"--config {source}: {flag} {why}")
        if stored in found:
            raise UserError(f"--config {source} names {flag} twice, under two names")
        found[stored] = value
    cli.check_values(parser, found, f"--config {source}")
    types = {one.dest: one.type for one in parser._actions if callable(one.type) and cli.takes_several(one)}
    return {
        name: [types[name](str(one)) for one in value] if isinstance(value, list) and name in types else value
        for name, value in found.items()
        if name not in typed and value is not None
    }


def config_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """What `--config` needs to make `args` again; what is of one run or of one machine, and switches that are off, stay out."""
    kept: dict[str, Any] = {}
    for action in parser._actions:
        value, off = getattr(args, action.dest, None), not action.const if action.nargs == 0 else None
        if action.dest not in OF_ONE_RUN | cli.MACHINE and value is not None and value is not off:
            kept[action.dest] = _plain(value)
    return HEADER.format(name=NAME) + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (bool, int, float)) else str(value)
