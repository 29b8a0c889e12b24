"""Random numbers: one seed for a run, and independent streams derived from it by name."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(seed: int, *names: object) -> torch.Generator:
    """A generator whose stream depends on `seed` and `names` only, never on what was drawn before."""
    digest = hashlib.sha256("/".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@contextmanager
def kept(number: int | None = None) -> Iterator[None]:
    """Inside the block torch draws from a stream of its own, begun at `number`; after it the run's goes on where it was."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    untouched, begun_at = torch.cuda.is_available() and not torch.cuda.is_initialized(), torch.initial_seed()
    try:
        with torch.random.fork_rng(devices=list(cards)):
            if number is not None:
                torch.manual_seed(number)
            yield
    finally:
        if untouched:  # a card that is first used in the block, or after it, begins where the run's seed wants it to
            torch.cuda.manual_seed_all(begun_at)


def rng_state() -> dict[str, Any]:
    """The state of every random stream of this process, in types that `torch.load(weights_only=True)` reads.

    Of several cards the present one's counts: a process uses one.
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned, also of another number of cards."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        states, card = state["cuda"], torch.cuda.current_device()  # earlier versions kept one for each card
        torch.cuda.set_rng_state(states[card] if card < len(states) else states[0])
