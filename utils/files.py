"""Writing files so that nothing is ever half written, and reading paths that others wrote."""

import codecs
import csv
import glob
import hashlib
import io
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import pandas as pd
from filelock import FileLock, Timeout

from utils.errors import UserError

ABANDONED = 3600  # seconds after which a temporary file belongs to nobody any more


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, remove it on failure.

    What processes left behind that were killed over the same path is removed. Raises `UserError` where `path` is there and
    no ordinary file: a link, a device or a pipe is never replaced.
    """
    path = Path(path)
    check_ordinary(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}.part-"
    for left in path.parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; rename it to `folder` on success, remove it on failure.

    Raises `UserError` where `folder` is there already.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        whole = Path(temporary) / folder.name
        whole.mkdir()
        yield whole
        whole.rename(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, so that a second process is refused (`UserError`) instead of writing into the same files.

    The lock is the system's and ends with the process, however it ends.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another process works in {folder}: wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def check_ordinary(path: Path) -> None:
    """Raise `UserError` where `path` is there and is a link, a device, a pipe or a folder."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path} is no ordinary file and is not replaced: name another one")


def starts_with(path: Path, beginning: bytes) -> bool:
    """Whether a file begins so, or is empty, or not there. Raises `UserError` as `check_ordinary` does."""
    check_ordinary(path)
    if not path.exists():
        return True
    with path.open("rb") as file:
        return file.read(len(beginning)) in (b"", beginning)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest(path: Path) -> str:
    """What a file's content comes to (SHA-256)."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def digest_of_all(paths: Iterable[Path]) -> str:
    """What the contents of several files come to, in their order."""
    return hashlib.sha256("".join(map(digest, paths)).encode()).hexdigest()


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV file with a header, all of it as text without blanks at the ends; the index counts the file's lines.

    Lines without a word are skipped, empty cells beyond the header are no cells. Raises `UserError` naming file and line.
    """
    try:
        text = text_of(path)
        lines = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        read = [(lines.line_num, [cell.strip() for cell in row]) for row in lines]
    except csv.Error as error:
        raise UserError(f"{path} is no CSV file: {error}") from error
    rows = {line: _without_empty_end(row) for line, row in read if any(row) and row != ["sep=", ""]}  # which Excel writes first
    if not rows:
        raise UserError(f"{path} is empty: expected a line with the names of its columns")
    first, header = next(iter(rows.items()))
    if header[0] == "" and len(header) > 1:  # pandas' own numbers of the rows
        rows = {line: row[1:] for line, row in rows.items()}
        header = header[1:]
    del rows[first]
    if len(header) == 1 and re.search(r"[;|\t]", header[0]):
        raise UserError(f"{path}, line {first}: its cells are not separated by commas; save it as CSV with commas")
    if "" in header or len(set(header)) < len(header):
        raise UserError(f"{path}, line {first}: columns {', '.join(header)}; expected a different name for each")
    for line, row in rows.items():
        if len(row) > len(header):
            raise UserError(
                f"{path}, line {line} has {len(row)} cells and the header {len(header)}, from {row[len(header)]!r} on: "
                "several values of one cell are separated by semicolons, and a comma inside one needs quotes"
            )
    filled = [row + [""] * (len(header) - len(row)) for row in rows.values()]
    return pd.DataFrame(filled, columns=header, index=list(rows), dtype=str)


def text_of(path: Path) -> str:
    """A text file's content: UTF-8, or what its first bytes (the byte order mark) say. Raises `UserError` for another."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 ({error}): save it so, or name the list that this file stands in"
        ) from error
    if "\0" in text:
        raise UserError(f"{path} is no text in UTF-8: save it so, or name the list that it stands in")
    return text


def _without_empty_end(row: list[str]) -> list[str]:
    return row[: max((place for place, cell in enumerate(row, start=1) if cell), default=0)]


def path_below(root: Path, name: str, source: str) -> Path:
    """Return `root / name`, refusing a name that is absolute or climbs out of `root`.

    The check is on the name itself, so that a data folder may be a symbolic link. Raises `UserError` naming `source`.
    """
    pure = PurePosixPath(name)
    if "\0" in name:
        raise UserError(f"{source}: {name!r} is no path: write the list again with write_file/")
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise UserError(
            f"{source}: the path {name!r} leaves {root}; paths must be relative to it (write the list again with write_file/)"
        )
    return root / pure
