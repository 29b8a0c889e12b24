"""A page of every flag and its default, made from the parsers: `python -m methods.runs.options > docs/options.md`."""

import argparse
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from methods import get_method, methods_of
from methods.experiments.method import Method
from methods.experiments.settings import TYPED, Setting
from methods.runs.arguments import build_parser

ABOUT = """# Options

Made by `python -m methods.runs.options > docs/options.md`; a test keeps it true. Hyphens and underscores are the same.

Defaults are what the paper's own scripts type (`--settings paper`). `--settings quick` has those of the short runs behind the
numbers of this project where a method has any; a flag that is typed wins over both."""
FAMILIES = {
    "few_shot": "methods that meta-train a learner",
    "classification": "methods that distil one teacher into a student",
}
Row = tuple[str, str, str]  # flags, meaning, default


def row_of(action: argparse.Action) -> Row:
    default = action.default
    if default is None or default == argparse.SUPPRESS:
        shown = ""
    elif isinstance(default, bool):
        shown = "on" if default is action.const else "off"
    elif isinstance(default, list | tuple):
        shown = " ".join(map(str, default))
    else:
        shown = str(default)
    meaning = (action.help or "").replace("%%", "%").replace("|", "\\|")
    return " ".join(f"`{flag}`" for flag in action.option_strings), meaning, shown


def rows_of(method: str) -> dict[str, Row]:
    """By name, the flags of a method's parser in its order."""
    actions = build_parser(method)._actions  # argparse has no public way to list them
    return {
        action.option_strings[-1]: row_of(action)
        for action in actions
        if action.dest not in ("help", "method", argparse.SUPPRESS)
    }


def table(rows: Iterable[Row]) -> list[str]:
    return [
        "| option | meaning | default |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows),
    ]


def typed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"`{name} {'on' if value is True else 'off' if value is False else value}`" for name, value in values.items()
    )


def where(row: Setting) -> str:
    asked = [f"`{name}`" + (" is given" if value is TYPED else f" is {value}") for name, value in row.when.items()]
    return f"- where {' and '.join(asked)}: {typed(row.values)}"


def first_words(method_class: type[Method]) -> str:
    text = method_class.__doc__ or sys.modules[method_class.__module__].__doc__ or ""
    return " ".join(text.split("\n\n")[0].split())


def section(method: str, method_class: type[Method], shared: Mapping[str, Row]) -> list[str]:
    """What is a method's own: flags, other defaults, values that hold only for some runs."""
    own = [row for name, row in rows_of(method).items() if shared.get(name) != row]
    lines = ["", f"## {method}", "", method_class.PAPER or first_words(method_class)]
    lines += ["", *table(own)] if own else []
    lines += ["", *map(where, method_class.SETTINGS)] if method_class.SETTINGS else []
    lines += ["", f"`--settings quick`: {typed(method_class.QUICK)}"] if method_class.QUICK else []
    return lines


def page() -> str:
    """All of it as Markdown: what all methods of a family share, then each method."""
    lines = ABOUT.splitlines()
    for task, title in FAMILIES.items():
        every = [rows_of(name) for name in methods_of(task)]
        shared = {name: row for name, row in every[0].items() if all(rows.get(name) == row for rows in every)}
        lines += ["", f"# The {title}", "", "All of them have", "", *table(shared.values())]
        for name in methods_of(task):
            lines += section(name, get_method(name), shared)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
