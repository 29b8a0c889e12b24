"""The shared generator against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from methods.inversion.generator import Settings, descend
from methods.inversion.meta_generator import LastingGenerator, MetaGenerator

pytestmark = pytest.mark.usefixtures("float64")
RATE, LATENT_RATE, OUTER_RATE, WEIGHT = 0.1, 0.2, 0.05, 3.0


class Product(nn.Module):
    """One weight w and one latent z: the image is w * z."""

    latent_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(WEIGHT))

    def forward(self, z: Tensor) -> Tensor:
        return self.w * z


class Asker:
    class_ids, way, image_size = (0,), 1, 1


def first_step(gradient: float) -> float:
    """Adam's, in units of its rate: nearly a sign."""
    return gradient / (abs(gradient) + 1e-8)


def by_hand(seed: int) -> tuple[float, float, float]:
    """z0, z1 and w2 of two Adam(.5, .999) steps on L = w z."""
    torch.manual_seed(seed)
    z0 = float(torch.randn(1, 1))
    w1 = WEIGHT - RATE * first_step(z0)  # dL/dw = z
    z1 = z0 - LATENT_RATE * first_step(WEIGHT)  # dL/dz = w
    momentum = (0.5 * 0.5 * z0 + 0.5 * z1) / (1 - 0.5**2)
    square = (0.999 * 0.001 * z0**2 + 0.001 * z1**2) / (1 - 0.999**2)
    return z0, z1, w1 - RATE * momentum / (math.sqrt(square) + 1e-8)


@pytest.mark.parametrize("seed", [0, 3])
def test_what_a_descent_hands_on(seed: int) -> None:
    z0, z1, w2 = by_hand(seed)
    for gradient_of, wanted in (("last", z1), ("sum", z0 + z1), ("difference", WEIGHT - w2)):
        torch.manual_seed(seed)
        found = descend(Product(), lambda images: images.sum(), 1, Settings(2, RATE, LATENT_RATE, gradient_of))  # type: ignore[arg-type]
        assert float(found.gradient[0]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("gradient_of", "moves"), [("sum", True), ("difference", True)])
def test_fomaml_and_reptile_move_the_shared_generator(gradient_of: str, moves: bool) -> None:
    """Adam's first step goes by its rate against the gradient's sign; the copy that was adapted is thrown away."""
    z0, z1, w2 = by_hand(0)
    towards = z0 + z1 if gradient_of == "sum" else WEIGHT - w2
    generator = Product()
    loss = lambda teacher, images, labels, learner: images.sum()  # noqa: E731
    inverter = MetaGenerator(generator, loss, Settings(2, RATE, LATENT_RATE, gradient_of), OUTER_RATE)  # type: ignore[arg-type]
    torch.manual_seed(0)
    inverter.invert_labels(Asker(), torch.zeros(1), None)
    assert float(generator.w.detach()) == pytest.approx(WEIGHT - OUTER_RATE * first_step(towards), rel=1e-9)


def test_a_lasting_generator_goes_on_where_it_was() -> None:
    generator = Product()
    loss = lambda teacher, images, labels, learner: images.sum()  # noqa: E731
    inverter = LastingGenerator(generator, loss, Settings(2, RATE, LATENT_RATE))  # type: ignore[arg-type]
    torch.manual_seed(0)
    inverter.invert_labels(Asker(), torch.zeros(1), None)
    assert float(generator.w.detach()) == pytest.approx(by_hand(0)[2], rel=1e-9)
