"""A whole experiment in one file: every run writes its own, config.yaml, and --config takes it, whole or in part."""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from methods.runs.run_log import RunLog
from utils import cli
from utils.errors import UserError
from utils.names import meant

NAME = "config.yaml"
HEADER = "# The flags of this run: python main.py --config {name} repeats it. What is typed besides takes precedence.\n"
# Flags about a single run, and not about what it does
OF_ONE_RUN = {"allow_code", "config", "dry_run", "evaluate", "out", "overwrite", "resume", "run_name", "seeds"}


class _OnceEach(yaml.SafeLoader):
    """Plain values alone, as the safe loader has it, and each name once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(name) for name, _ in node.value]
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise ValueError(f"{twice[0]} stands there twice")
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """The flags and values of a YAML or JSON file. Raises `UserError` where there is none, or where it is damaged."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceEach)
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
            alike = meant(flag, [known for known in flags if "help" not in known])
            why = (
                f"is no flag of {parser.prog.removeprefix('main.py ')}{alike}"
                if stored is None
                else "is typed, and not kept in a file"
            )
            raise UserError(f"--config {source}: {flag} {why}")
        if stored in found:
            raise UserError(f"--config {source} names {flag} twice, under two names")
        if value == []:
            raise UserError(f"--config {source}: {flag} has no value")
        found[stored] = value
    several = {action.dest: action for action in parser._actions if cli.takes_several(action)}
    found |= {
        name: [value] for name, value in found.items() if name in several and value is not None and type(value) is not list
    }
    cli.check_values(parser, found, f"--config {source}")
    types = {name: action.type if callable(action.type) else str for name, action in several.items()}
    return {
        name: [types[name](str(one)) for one in value] if name in several else value
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
    return _text(kept)


def note_changes(parser: argparse.ArgumentParser, args: argparse.Namespace, log: RunLog) -> None:
    """Keep what a run that goes on was told anew (more --epochs): its args.json and config.yaml then repeat all of it."""
    record, spelled = RunLog.read_record(log.folder), {place: flag for flag, place in reversed(cli.flags_of(parser).items())}
    new = changed(record["flags"], args, cli.changeable(parser, evaluating=False) - OF_ONE_RUN - cli.MACHINE)
    new = {name: value for name, value in new.items() if value is not None}
    if not new:
        return
    for name, value in new.items():
        words = value if isinstance(value, list) else [] if value is True else [value]
        record["argv"] += [spelled[name], *map(str, words)]
    record["flags"] |= new
    log.write("args.json", json.dumps(record, indent=2) + "\n")
    if (path := log.folder / NAME).is_file():
        log.write(NAME, _text(read_config(path) | new))


def changed(saved: Mapping[str, Any], args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The flags among `names` that `args` have otherwise than args.json `saved` them, with their new values."""
    now = {name: _plain(getattr(args, name, None)) for name in sorted(names)}
    return {name: value for name, value in now.items() if value != saved.get(name)}


def _text(kept: Mapping[str, Any]) -> str:
    return HEADER.format(name=NAME) + yaml.safe_dump(dict(kept), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
