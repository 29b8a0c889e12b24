"""Answers of services that have arrived, kept so that nobody pays for them twice."""

import json
import sqlite3
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np

from utils.errors import UserError

FILE = ".answers.sqlite"  # in the folder of runs
PATIENCE = 60.0  # seconds that another run may hold the file


class AnswerStore:
    """Answers by request, in a file that all runs of a folder share; an answer is on disk when `put` returns.

    A killed process loses none of them. Answers are never changed and never deleted: another model has another key.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._one_at_a_time = Lock()

    @cached_property
    def _file(self) -> sqlite3.Connection:
        """The file, made when the first answer is looked for."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        file.execute("PRAGMA journal_mode=WAL")
        file.execute("PRAGMA synchronous=NORMAL")
        file.execute("CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, form TEXT, data BLOB)")
        return file

    def get(self, request: bytes) -> np.ndarray | None:
        """The answer to the request of this digest, or None."""
        found = self._do("SELECT form, data FROM answers WHERE request = ?", (request,))
        if not found:
            return None
        form, data = found[0]
        dtype, shape = json.loads(form)
        return np.frombuffer(data, dtype).reshape(shape).copy()

    def put(self, request: bytes, answer: np.ndarray) -> None:
        """Keep the answer to a request; the first one that was kept stays."""
        form = json.dumps([answer.dtype.str, answer.shape])
        self._do("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (request, form, answer.tobytes()))

    def _do(self, statement: str, values: tuple) -> list[tuple]:
        try:
            with self._one_at_a_time:
                return self._file.execute(statement, values).fetchall()
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{self.path}, where answers of services are kept: {error}") from error
