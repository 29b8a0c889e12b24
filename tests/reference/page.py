"""A page of what is equal to the papers' released code, from the tables of the tests beside this file.

`PYTHONPATH=.:tests python -m reference.page > docs/fidelity.md`
"""

import importlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

ABOUT = """# Beside the papers' released code

Made by `PYTHONPATH=.:tests python -m reference.page > docs/fidelity.md`; a test keeps it true.

The papers' released code was run once on made-up numbers, and what it computed is kept in `tests/reference/*.json`, each case
with its inputs. The tests compute the same here, in double precision, and assert what these tables say of every row:

- **equal**: the same to 1e-9 (sums of thousands of random numbers: their spread)
- **flag**: the same with the flag named
- **differs**: another number on purpose; the phrase stands among the Deviations of the method's file, where the reason is
- **nothing**: there is nothing to compare, and why

A case of which parts are equal and others not has several rows, told apart behind a bar."""
TITLES = {
    "purer": "PURER",
    "purer_plus": "PURER-Plus",
    "bidf_mkd": "BiDf-MKD",
    "free": "FREE",
    "tgr": "TGR",
    "teapot": "TEAPOT",
    "fast_datafree": "Fast-Datafree",
    "fast_datafree_others": "The ways that Fast-Datafree is compared with",
}
VERDICTS = ("equal", "flag", "differs", "nothing")


def tables() -> dict[str, Mapping[str, Any]]:
    """The rows of every file of tests, by its name."""
    return {name: importlib.import_module(f"reference.test_{name}").CASES for name in TITLES}


def page() -> str:
    lines = ABOUT.splitlines()
    for name, rows in tables().items():
        counts = Counter(row.verdict for row in rows.values())
        summary = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
        lines += ["", f"## {TITLES[name]}", "", f"{len(rows)} rows: {summary}.", ""]
        lines += ["| case | verdict | flag, or what differs |", "|---|---|---|"]
        lines += [f"| {cell(case)} | {row.verdict} | {cell(row.note)} |".replace("|  |", "| |") for case, row in rows.items()]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
