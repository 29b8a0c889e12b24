"""The shared generator against numbers worked out by hand."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.inversion.by_generator import BETAS, Descent, copy_of, descend, follow, invert_each, invert_one
from methods.inversion.terms import inversion_loss
from models.generator import Generator
from utils.images import Augmentation

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
        descent = Descent(2, RATE, LATENT_RATE, gradient_of)
        _, _, gradient = descend(Product(), lambda images: images.sum(), 1, descent)  # type: ignore[arg-type]
        assert float(gradient[0]) == pytest.approx(wanted, rel=1e-9)


def plain(teacher: object, images: Tensor, labels: Tensor) -> Tensor:
    return images.sum()


@pytest.mark.parametrize("gradient_of", ["sum", "difference"])
def test_fomaml_and_reptile_move_the_shared_generator(gradient_of: str) -> None:
    """Adam's first step goes by its rate against the gradient's sign; the copy that was adapted is thrown away."""
    z0, z1, w2 = by_hand(0)
    towards = z0 + z1 if gradient_of == "sum" else WEIGHT - w2
    generator = Product()
    optimizer = torch.optim.Adam(generator.parameters(), OUTER_RATE, betas=BETAS)
    torch.manual_seed(0)
    descent = Descent(2, RATE, LATENT_RATE, gradient_of)
    found = invert_one(Asker(), torch.zeros(1), copy.deepcopy(generator), plain, descent)  # type: ignore[arg-type]
    assert float(generator.w.detach()) == WEIGHT
    follow(optimizer, [found.gradient])
    assert float(generator.w.detach()) == pytest.approx(WEIGHT - OUTER_RATE * first_step(towards), rel=1e-9)


def test_a_generator_that_is_handed_in_goes_on_where_it_was() -> None:
    generator = Product()
    torch.manual_seed(0)
    invert_one(Asker(), torch.zeros(1), generator, plain, Descent(2, RATE, LATENT_RATE))  # type: ignore[arg-type]
    assert float(generator.w.detach()) == pytest.approx(by_hand(0)[2], rel=1e-9)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


@pytest.mark.parametrize("bn", [0.0, 0.5])
def test_inversion_leaves_teachers_unchanged(bn: float, lively_teacher: Callable) -> None:
    subject, learner = lively_teacher(), lively_teacher(5)
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    subject.train()

    def loss(teacher: Any, images: Tensor, labels: Tensor) -> Tensor:
        return inversion_loss({"ce": 1.0, "bn": bn, "adv": 1.0}, teacher, Augmentation()(images), labels, learner)

    (found,) = invert_each([subject], 4, copy_of(Generator(16)), loss, Descent(2))
    assert all(torch.equal(before[name], value) for name, value in subject.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.parameters())
    assert hooks(subject) == 0
    images = found.batch.images
    assert images.shape == (12, 3, 16, 16)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert found.batch.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert bool(torch.isfinite(found.loss))


def test_descent_lowers_the_loss_and_keeps_the_best_images() -> None:
    torch.manual_seed(0)
    generator = Generator(16, width=8)
    seen = []

    def loss_of(images: Tensor) -> Tensor:
        loss = (images - 0.9).square().mean()
        seen.append((float(loss.detach()), images.detach().clone()))
        return loss

    images, loss, _ = descend(generator, loss_of, 4, Descent(12, 0.02, 0.02))
    best = min(seen, key=lambda pair: pair[0])
    assert float(loss) == best[0]
    assert torch.equal(images, best[1])
    assert best[0] < 0.5 * seen[0][0]


def test_descent_leaves_what_the_loss_asks_without_gradients() -> None:
    asked = torch.ones(3, requires_grad=True)
    generator = Generator(16, width=8)
    descend(generator, lambda images: (images.mean((0, 2, 3)) * asked).sum(), 4, Descent(2, 0.02, 0.02))
    assert asked.grad is None
    assert all(parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize("which", ["last", "sum"])
def test_meta_gradient_is_that_of_the_last_step_or_of_all(which: str) -> None:
    torch.manual_seed(0)
    generator = Generator(16, width=4)
    recorded: list[list[Tensor]] = []

    def loss_of(images: Tensor) -> Tensor:
        loss = (images - 0.9).square().mean()
        recorded.append([g.clone() for g in torch.autograd.grad(loss, list(generator.parameters()), retain_graph=True)])
        return loss

    _, _, gradient = descend(generator, loss_of, 3, Descent(4, 0.01, 0.01, which))
    wanted = recorded[-1] if which == "last" else [sum(parts) for parts in zip(*recorded, strict=True)]
    for ours, theirs in zip(gradient, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-15)


class Colours(nn.Module):
    """A teacher that is easy to invert: class c is the brightness of channel c."""

    class_ids, way, image_size = (0, 1, 2), 3, 16

    @property
    def network(self) -> nn.Module:
        return self

    def forward(self, images: Tensor) -> Tensor:
        return 10 * images.mean((2, 3))


def test_the_generator_moves_by_the_sum_over_teachers() -> None:
    """One outer step, against Adam on the gradients that the same descents give one by one."""
    torch.manual_seed(0)
    generator, descent = Generator(16, width=8), Descent(2, 1e-3, 1e-2)
    reference = copy.deepcopy(generator)
    optimizers = [torch.optim.Adam(some.parameters(), 5e-3, betas=BETAS) for some in (generator, reference)]

    def loss(teacher: Any, images: Tensor, labels: Tensor) -> Tensor:
        return inversion_loss({"ce": 1.0}, teacher, Augmentation()(images), labels)

    start = torch.get_rng_state()
    found = invert_each([Colours(), Colours()], 4, copy_of(generator), loss, descent)
    follow(optimizers[0], [one.gradient for one in found])
    torch.set_rng_state(start)
    labels = torch.arange(3).repeat_interleave(4)
    total = [torch.zeros_like(parameter) for parameter in reference.parameters()]
    for seed in torch.randint(2**62, (2,)).tolist():  # of each teacher
        torch.manual_seed(seed)
        _, _, gradient = descend(copy.deepcopy(reference), lambda images: loss(Colours(), images, labels), 12, descent)
        total = [one + other for one, other in zip(total, gradient, strict=True)]
    for parameter, gradient in zip(reference.parameters(), total, strict=True):
        parameter.grad = gradient
    optimizers[1].step()
    for ours, theirs in zip(generator.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
