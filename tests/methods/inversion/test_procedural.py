from collections.abc import Callable

import pytest
import torch

from methods.inversion.procedural import dead_leaves, procedural_images, spectral_noise

DEVICE = torch.device("cpu")


@pytest.mark.parametrize("make", [spectral_noise, dead_leaves, procedural_images])
@pytest.mark.parametrize("size", [16, 33])
def test_images_are_images_and_follow_the_seed(make, size: int, drawn_twice: Callable[..., torch.Tensor]) -> None:
    assert float(drawn_twice(make, size).flatten(1).std(1).min()) > 0.01  # nothing is blank


def test_noise_has_a_falling_spectrum() -> None:
    """As natural images: more power in slow changes than in fast ones, far beyond white noise."""
    torch.manual_seed(0)
    power = torch.fft.rfft2(spectral_noise(64, 32, DEVICE).mean(1)).abs().square().mean(0)  # (32, 17)
    slow, fast = power[1, 1], power[12, 12]
    assert float(slow / fast) > 20


def test_leaves_are_flat_with_sharp_borders() -> None:
    torch.manual_seed(0)
    images = dead_leaves(32, 32, DEVICE)
    steps = (images[..., 1:] - images[..., :-1]).abs().amax(1)  # (32, 32, 31)
    assert 0.4 < float((steps == 0).float().mean()) < 0.98
    assert float(steps.max()) > 0.5
