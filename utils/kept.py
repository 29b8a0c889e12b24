"""Work that is done once: its result is kept on disk, and it draws from a random stream of its own."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils import checkpoint, seed


class Kept:
    """Results below `folder`, a kind of work each in a folder of its own.

    `seconds` is the time that the results took which an earlier run has made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0

    def __call__(self, kind: str, key: object, number: int | None, compute: Callable[[], Any]) -> Any:
        """`compute()` under the seed `number`, or what it gave before for this `key` (anything that JSON can write).

        The run's own random streams stay as they are.
        """
        fresh: list[float] = []

        def timed() -> dict[str, Any]:
            begin = time.perf_counter()
            with seed.kept(number):
                value = compute()
            fresh.append(time.perf_counter() - begin)
            return {"value": value, "seconds": fresh[0]}

        content = checkpoint.cached(self.folder / kind, [kind, number, key], timed)
        self.seconds += 0.0 if fresh else content["seconds"]
        return content["value"]
