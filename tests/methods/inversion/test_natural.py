from collections.abc import Callable

import pytest
import torch

from methods.inversion.natural import _blurred, natural_images, photo_crops
from methods.inversion.procedural import procedural_images

DEVICE = torch.device("cpu")


@pytest.mark.parametrize("make", [natural_images, photo_crops])
@pytest.mark.parametrize("size", [16, 33])
def test_images_are_images_and_follow_the_seed(make, size: int, drawn_twice: Callable[..., torch.Tensor]) -> None:
    drawn_twice(make, size)


def test_colours_are_nearly_grey() -> None:
    """As in photographs, whose channels move together; the colours of plain leaves do not."""

    def together(images: torch.Tensor) -> float:
        """Mean correlation of red and blue over the pixels of an image."""
        red, blue = (images[:, channel].flatten(1) for channel in (0, 2))
        red, blue = (values - values.mean(1, keepdim=True) for values in (red, blue))
        return float(torch.cosine_similarity(red, blue, dim=1).mean())

    torch.manual_seed(0)
    assert together(natural_images(64, 32, DEVICE)) > 0.7 > 0.5 > together(procedural_images(64, 32, DEVICE))


def test_a_blur_keeps_the_mean_and_takes_what_is_fast() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    blurred = _blurred(images, torch.tensor([0.0, 2.0], dtype=torch.float64).view(-1, 1, 1, 1))
    assert torch.allclose(blurred[0], images[0], atol=1e-9)
    assert torch.allclose(blurred.mean((2, 3)), images.mean((2, 3)), atol=1e-9)
    assert float(blurred[1].std()) < 0.5 * float(images[1].std())


def test_photographs_of_any_side() -> None:
    """Also beyond the photographs' own."""
    torch.manual_seed(0)
    assert photo_crops(2, 500, DEVICE).shape == (2, 3, 500, 500)
