"""docs/fidelity.md says what the tests assert."""

from pathlib import Path

from reference.page import VERDICTS, page, tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fidelity.md"


def test_the_page_is_that_of_the_tables() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_row_has_a_known_verdict() -> None:
    assert {row.verdict for rows in tables().values() for row in rows.values()} <= set(VERDICTS)
