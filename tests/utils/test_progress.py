"""Progress bars: on a terminal they move by themselves; elsewhere they leave few lines."""

import io
import sys
import time

import pytest

from utils import progress
from utils.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def instead_of_stderr(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> io.StringIO:
    monkeypatch.setattr(sys, "stderr", stream)  # in the test itself: pytest puts its own there before each
    return stream


def test_a_file_gets_one_line_of_a_short_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = instead_of_stderr(monkeypatch, io.StringIO())
    for _ in Progress(range(1000), desc="short", mininterval=0, disable=False):
        pass
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("short: 100%")
    assert "\r" not in stream.getvalue()


def test_no_number_is_cut_off_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = instead_of_stderr(monkeypatch, io.StringIO())
    with Progress(total=1, desc="long", disable=False) as bar:
        bar.set_postfix_str("loss=0.123, " * 20 + "last=7")
        bar.update()
    assert "last=7" in stream.getvalue()


def test_a_bar_that_does_not_stay_leaves_nothing_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = instead_of_stderr(monkeypatch, io.StringIO())
    for _ in Progress(range(1000), desc="passing", mininterval=0, disable=False, leave=False):
        pass
    assert stream.getvalue() == ""


def test_a_long_bar_leaves_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = instead_of_stderr(monkeypatch, io.StringIO())
    clock = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_MOVES", 3600.0)
    for _ in Progress(range(150), desc="long", mininterval=0, disable=False, miniters=1, leave=False):
        clock[0] += 1.0
    assert len(stream.getvalue().splitlines()) == 2  # of 150 seconds


def test_on_a_terminal_a_bar_moves_without_being_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = instead_of_stderr(monkeypatch, Terminal())
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_MOVES", 0.01)
    with Progress(total=2, desc="slow step", disable=False):
        begin = time.monotonic()
        while stream.getvalue().count("slow step") < 3 and time.monotonic() - begin < 120:  # that only a hang reaches
            time.sleep(0.01)
        assert stream.getvalue().count("slow step") >= 3
