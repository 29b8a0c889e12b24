"""Progress bars that move while somebody looks, and leave a line a minute where nobody does: in a file, in a log."""

import os
import sys
import threading
from time import monotonic
from typing import Any, TextIO

from tqdm import tqdm

SECONDS_BETWEEN_MOVES = 1.0
SECONDS_BETWEEN_LINES = 60.0


class Progress(tqdm):
    """tqdm's bar, as wide as the terminal, whose clock moves every second also where a step takes long.

    On a stream that is no terminal it is a plain line a minute, and a last one where the bar is to stay (`leave`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        options: dict[str, Any] = {"file": _Lines(sys.stderr)}  # whose lines may be of any length
        if sys.stderr.isatty():
            options = {"file": sys.stderr} | ({"dynamic_ncols": True} if _columns() else {"ncols": 80})
        options |= kwargs
        self._over = threading.Event()
        super().__init__(*args, **options)
        if not self.disable:
            threading.Thread(target=self._tick, daemon=True).start()

    def _tick(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_MOVES):
            self.refresh()

    def close(self) -> None:
        self._over.set()
        super().close()


def _columns() -> int:
    """The terminal's width; 0 where nobody knows."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


class _Lines:
    """A stream that is no terminal, as a bar sees it: of all that the bar draws, a line a minute goes through."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.drawn, self.said_at = stream, "", monotonic()

    def write(self, text: str) -> None:
        ends = text == "\n"  # of a bar that stays
        self.drawn = text.strip() or self.drawn
        if self.drawn and (ends or monotonic() - self.said_at >= SECONDS_BETWEEN_LINES):
            self.stream.write(f"{self.drawn}\n")
            self.drawn, self.said_at = "", monotonic()

    def flush(self) -> None:
        self.stream.flush()
