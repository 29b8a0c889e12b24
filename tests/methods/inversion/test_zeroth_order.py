from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.inversion.by_generator import Descent, fresh, invert_each
from methods.inversion.terms import adversarial_loss
from methods.inversion.zeroth_order import (
    ZerothOrder,
    black_box_loss,
    estimate_gradient,
    least_mu,
    radius_of,
    unit_directions,
)
from methods.services.black_box import log_answers
from utils.errors import BudgetSpent
from utils.images import to_float, to_uint8

pytestmark = pytest.mark.usefixtures("float64")
CIFAR_STD = (0.267, 0.256, 0.276)


class Linear:
    """A service whose probabilities are a softmax of fixed linear forms, with its white twin's logits."""

    class_ids, way, image_size = (0, 1, 2), 3, 8

    def __init__(self) -> None:
        weight = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.weight, self.asked = weight / weight.norm() * 4, 0

    def logits(self, images: Tensor) -> Tensor:
        return torch.einsum("bchw,nchw->bn", images, self.weight)

    def query(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return F.softmax(self.logits(images), 1)

    def as_sent(self, images: Tensor) -> Tensor:
        return images


def cosine(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(1), other.flatten(1)).mean())


def quadratic(images: Tensor) -> Tensor:
    return images.flatten(1).square().sum(1)


@pytest.mark.parametrize("antithetic", [False, True])
def test_the_estimate_is_unbiased_and_of_the_right_length(antithetic: bool) -> None:
    """On |x|^2, whose gradient is 2x: the mean over many directions is the gradient itself, not only its direction."""
    torch.manual_seed(0)
    x = torch.rand(2, 1, 4, 4)
    estimate = estimate_gradient(quadratic, x, quadratic(x), ZerothOrder(1e-3, 40_000, antithetic=antithetic))
    assert torch.allclose(estimate, 2 * x, atol=0.1)
    assert cosine(estimate, x) > 0.99


def test_antithetic_pairs_know_no_curvature() -> None:
    """Along one direction: forward differences of |x|^2 are off by mu, antithetic ones exact."""
    x = torch.rand(1, 1, 2, 2)
    torch.manual_seed(1)
    (u,) = unit_directions(1, x)
    slope = (2 * x * u).sum()
    for antithetic, error in ((False, 0.5), (True, 0.0)):
        torch.manual_seed(1)
        estimate = estimate_gradient(quadratic, x, quadratic(x), ZerothOrder(0.5, 2 if antithetic else 1, None, antithetic))
        assert torch.allclose(estimate, 4 * u * (slope + error), atol=1e-9)


@pytest.mark.parametrize("antithetic", [False, True])
def test_chunks_change_nothing_and_queries_are_as_many_as_said(antithetic: bool) -> None:
    x, results, asked = torch.rand(3, 3, 8, 8), [], []
    service = Linear()

    def losses(images: Tensor) -> Tensor:
        return service.query(images)[:, 0]

    for chunks in (1, 4, 10, None):
        torch.manual_seed(0)
        service.asked = 0
        results.append(estimate_gradient(losses, x, losses(x), ZerothOrder(0.01, 10, chunks, antithetic)))
        asked.append(service.asked)
    assert all(torch.allclose(results[0], other, rtol=1e-9, atol=1e-12) for other in results[1:])
    assert asked == [3 * 10 + 3] * 4


def test_the_black_box_loss_has_the_value_and_the_gradient_of_the_white_one() -> None:
    """Cross entropy and adversarial term, with a learner that the images also reach exactly."""
    torch.manual_seed(0)
    service, weights = Linear(), {"ce": 1.0, "adv": 0.7}
    images = torch.rand(6, 3, 8, 8).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    scale = torch.randn(3, 3, 8, 8) * 0.3

    def learner(x: Tensor) -> Tensor:
        return service.logits(x) + torch.einsum("bchw,nchw->bn", x, scale)

    settings = ZerothOrder(0.01, 20_000)
    loss = black_box_loss(weights, service, images, labels, settings, learner)
    logits = service.logits(images)
    wanted = F.cross_entropy(logits, labels) + 0.7 * adversarial_loss(logits, learner(images))
    assert (logits.argmax(1) == learner(images).argmax(1)).any()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-9)
    (ours,), (true,) = torch.autograd.grad(loss, images), torch.autograd.grad(wanted, images)
    assert cosine(ours, true) > 0.98
    assert float(ours.norm() / true.norm()) == pytest.approx(1, abs=0.05)


def test_inverting_a_black_box_lowers_the_true_loss() -> None:
    torch.manual_seed(0)
    service = Linear()

    def inverted(steps: int) -> Tensor:
        torch.manual_seed(0)
        loss = partial(black_box_loss, {"ce": 1.0}, estimator=ZerothOrder(0.01, 20))
        (found,) = invert_each([service], 4, fresh(torch.device("cpu")), loss, Descent(steps, 5e-3, 5e-3))
        return F.cross_entropy(service.logits(found.batch.images), found.batch.labels)

    assert float(inverted(40)) < 0.7 * float(inverted(1))


def test_a_spent_budget_ends_the_descent_with_what_it_has() -> None:
    service = Linear()

    def limited(images: Tensor) -> Tensor:
        if service.asked + len(images) > 100:
            raise BudgetSpent("spent")
        return Linear.query(service, images)

    service.query = limited  # type: ignore[method-assign]
    loss = partial(black_box_loss, {"ce": 1.0}, estimator=ZerothOrder(0.01, 4))
    start, descent = fresh(torch.device("cpu")), Descent(50, 1e-3, 1e-3)
    (found,) = invert_each([service], 2, start, loss, descent)  # 6 images x 5 queries a step: three whole steps
    assert found.batch.images.shape == (6, 3, 8, 8)
    assert service.asked <= 100
    with pytest.raises(BudgetSpent):
        invert_each([service], 2, start, loss, descent)


def test_eight_bits_see_only_steps_of_a_grey_level() -> None:
    """With --mu from `least_mu` the estimate through 8-bit images still points along the gradient; far below, nowhere."""
    service, x = Linear(), to_float(to_uint8(torch.rand(2, 3, 8, 8)))
    labels = torch.tensor([0, 1])

    def losses(images: Tensor) -> Tensor:
        return F.cross_entropy(log_answers(service.query(images)), labels.repeat(len(images) // 2), reduction="none")

    def as_sent(images: Tensor) -> Tensor:
        return to_float(to_uint8(images))

    true = torch.autograd.functional.jacobian(lambda x: F.cross_entropy(service.logits(x), labels, reduction="sum"), x)
    mu = least_mu(8, CIFAR_STD)
    torch.manual_seed(0)
    good = estimate_gradient(losses, x, losses(x), ZerothOrder(radius_of(mu, CIFAR_STD), 2000), as_sent)
    lost = estimate_gradient(losses, x, losses(x), ZerothOrder(radius_of(mu / 100, CIFAR_STD), 2000), as_sent)
    assert cosine(good, true) > 0.8
    assert cosine(lost, true) < 0.1
