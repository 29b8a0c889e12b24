"""A paper's settings: the values that its own scripts type, which are the defaults here.

They need not be one value each: a row may hold only for some image set, shot, number of steps or pair of networks.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TYPED = object()  # stands for any value that somebody typed


@dataclass(frozen=True)
class Setting:
    """`values` of flags where all flags of `when` have the values that stand there (`TYPED`: any)."""

    when: Mapping[str, Any]
    values: Mapping[str, Any]

    def holds(self, args: argparse.Namespace) -> bool:
        return all(
            getattr(args, flag) is not None if wanted is TYPED else getattr(args, flag) == wanted
            for flag, wanted in self.when.items()
        )


def settings_for(rows: tuple[Setting, ...], quick: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The defaults of a command line: the rows that hold, later ones win; with `--settings quick`, those of a short run too."""
    values: dict[str, Any] = {}
    for row in rows:
        values |= row.values if row.holds(args) else {}
    return values | (dict(quick) if args.settings == "quick" else {})
