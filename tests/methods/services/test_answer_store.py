import sqlite3
from pathlib import Path

import numpy as np
import pytest

from methods.services.answer_store import FILE, AnswerStore
from utils.errors import UserError


def test_answers_come_back_bit_for_bit_also_in_another_process(tmp_path: Path) -> None:
    one, other = AnswerStore(tmp_path / "runs"), AnswerStore(tmp_path / "runs")
    answer = np.random.default_rng(0).random((3, 5)).astype("<f4")
    assert one.get(b"key") is None
    one.put(b"key", answer)
    found = other.get(b"key")
    assert found is not None
    assert np.array_equal(found, answer)
    assert found.dtype == answer.dtype
    other.put(b"key", answer + 1)  # answers are never changed
    again = one.get(b"key")
    assert again is not None
    assert np.array_equal(again, answer)


def test_nothing_is_made_before_an_answer_is_looked_for(tmp_path: Path) -> None:
    AnswerStore(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else of the user's" * 100)
    with pytest.raises(UserError, match=FILE):
        AnswerStore(tmp_path).get(b"key")
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(tmp_path / FILE).execute("SELECT 1 FROM sqlite_master")
