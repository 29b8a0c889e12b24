import random

import numpy as np
import pytest
import torch

from utils import checkpoint, seed


def draw() -> tuple:
    return random.random(), float(np.random.rand()), float(torch.rand(1)), float(np.random.normal())


def test_the_state_survives_a_checkpoint(tmp_path) -> None:
    seed.seed_everything(3)
    draw()
    checkpoint.save(seed.rng_state(), tmp_path / "rng.pt")
    wanted = [draw(), draw()]
    seed.seed_everything(99)
    seed.set_rng_state(checkpoint.load(tmp_path / "rng.pt"))
    assert [draw(), draw()] == wanted


def test_named_streams_are_independent_of_each_other() -> None:
    first = torch.rand(3, generator=seed.generator(0, "a"))
    assert torch.equal(first, torch.rand(3, generator=seed.generator(0, "a")))
    assert not torch.equal(first, torch.rand(3, generator=seed.generator(0, "b")))
    assert not torch.equal(first, torch.rand(3, generator=seed.generator(1, "a")))


class Cards:
    """`torch.cuda` of a machine with so many cards, as far as random streams go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, used: bool) -> None:
        self.streams = [torch.full((4,), number, dtype=torch.uint8) for number in range(count)]
        self.seeds: list[int] = []
        for name, value in {
            "is_available": lambda: True,
            "is_initialized": lambda: used,
            "device_count": lambda: count,
            "current_device": lambda: count - 1,
            "get_rng_state": lambda device=None: self.streams[count - 1],
            "set_rng_state": self.put,
            "manual_seed_all": self.seeds.append,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def put(self, state: torch.Tensor, device: object = None) -> None:
        self.streams[-1] = state


def test_a_run_of_two_cards_goes_on_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as two:
        Cards(two, 2, used=True)
        saved = seed.rng_state()
    assert [state.tolist() for state in saved["cuda"]] == [[1] * 4]  # the one in use
    cards = Cards(monkeypatch, 1, used=True)
    seed.set_rng_state(saved)
    assert cards.streams[0].tolist() == [1] * 4
    seed.set_rng_state({**saved, "cuda": [torch.full((4,), number, dtype=torch.uint8) for number in (7, 8)]})  # as once kept
    assert cards.streams[0].tolist() == [7] * 4


def test_a_card_that_was_not_used_yet_begins_with_the_runs_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block with a stream of its own leaves the card's where the run wants it to begin."""
    seed.seed_everything(5)
    cards = Cards(monkeypatch, 1, used=False)
    with seed.kept(3):
        pass
    assert cards.seeds[-1] == 5
