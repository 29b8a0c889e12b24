"""Writing files so that nothing is ever half written, and reading paths that others wrote."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pandas as pd

from utils.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with a header, all of it as text. Raises `UserError` naming a file that is none."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV file: {error}") from error


def path_below(root: Path, name: str, source: str) -> Path:
    """Return `root / name`, refusing a name that is absolute or climbs out of `root`.

    The check is on the name itself, so that a data folder may be a symbolic link. Raises `UserError` naming `source`.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise UserError(
            f"{source}: the path {name!r} leaves {root}; paths must be relative to it (write the list again with write_file/)"
        )
    return root / pure
