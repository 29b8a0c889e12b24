"""Signals in the first seconds, while slow imports run: a sentence instead of a traceback or silence."""

import os
import signal
import sys


def stop_with_a_sentence() -> None:
    """Until `interruptible`, Ctrl-C and SIGTERM end the program at once: nothing has begun that could be lost."""

    def stop(number: int, frame: object) -> None:
        print("stopped before anything began", file=sys.stderr, flush=True)
        os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def interruptible() -> None:
    """From now on both raise `KeyboardInterrupt`, wherever the program is."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
