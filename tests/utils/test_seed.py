import random

import numpy as np
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
