from collections.abc import Callable

import pytest
import scipy.spatial.distance
import torch
import torch.nn.functional as F

from methods.inversion.bn_statistics import record_bn_distances
from methods.inversion.pseudo_batch import labels_of
from methods.inversion.terms import TERMS, Term, adversarial_loss, imbalance, inversion_loss, jensen_shannon, total_variation
from utils.images import shift_and_flip

pytestmark = pytest.mark.usefixtures("float64")


def test_adversarial_loss_by_hand() -> None:
    """Only images on which both agree count, divided by all images."""
    t = torch.log(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]))
    s = torch.log(torch.tensor([[0.5001, 0.4999], [0.3, 0.7], [0.4, 0.6]]))
    first = 0.8 * torch.log(torch.tensor(0.8 / 0.5001)) + 0.2 * torch.log(torch.tensor(0.2 / 0.4999))
    third = 0.1 * torch.log(torch.tensor(0.1 / 0.4)) + 0.9 * torch.log(torch.tensor(0.9 / 0.6))
    assert float(adversarial_loss(t, s)) == pytest.approx(-float(first + third) / 3, rel=1e-9)


def test_the_adversarial_gradient_reaches_the_image_through_both() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 3)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return adversarial_loss(x @ a.T, x @ b.T)

    x = torch.randn(6, 3, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (x,))


def test_the_loss_is_the_weighted_sum_of_its_terms(lively_teacher: Callable) -> None:
    subject, learner = lively_teacher(), lively_teacher(3)
    images, labels = torch.rand(6, 3, 16, 16), labels_of(subject, 2, torch.device("cpu"))
    x, pixels = shift_and_flip(images), torch.randn(6, 3, 16, 16)
    weights = {"ce": 2.0, "tv": 0.1, "l2": 0.2, "bn": 0.5, "act": 0.7, "balance": 0.9, "adv": 3.0}
    assert weights.keys() == TERMS.keys()
    loss = inversion_loss(weights, subject, x, labels, learner, pixels=pixels)
    with record_bn_distances(subject.network) as distances:
        logits = subject(x)
    wanted = 2 * F.cross_entropy(logits, labels) + 0.1 * total_variation(pixels) + 0.2 * pixels.norm() + 0.5 * sum(distances)
    wanted = wanted - 0.7 * subject.features(x).abs().mean() + 0.9 * imbalance(logits)
    wanted = wanted + 3 * adversarial_loss(logits, learner(x))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-9)
    leaf = images.clone().requires_grad_()
    constant = {"adv": 3.0, "adv_detach": 1.0}  # the same value; its gradient comes through the teacher alone
    value = inversion_loss(constant, subject, leaf, labels, learner)
    assert float(value.detach()) == pytest.approx(3 * float(adversarial_loss(subject(images), learner(images))), rel=1e-9)
    wanted_gradient = torch.autograd.grad(3 * adversarial_loss(subject(leaf), learner(images)), leaf)[0]
    assert torch.allclose(torch.autograd.grad(value, leaf)[0], wanted_gradient, rtol=1e-9, atol=1e-15)
    alone = inversion_loss({"adv": 3.0}, subject, x, labels)  # nobody to disagree with
    assert float(alone) == 0


def test_jensen_shannon_against_scipy() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(4, 6), torch.randn(4, 6)
    p, q = torch.softmax(one / 3, 1).numpy(), torch.softmax(other / 3, 1).numpy()
    wanted = (scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2).mean()
    assert float(jensen_shannon(one, other)) == pytest.approx(wanted, rel=1e-9)


def test_imbalance_is_least_where_classes_are_alike() -> None:
    even, one_sided = torch.eye(4) * 50, torch.eye(4)[:1].repeat(4, 1) * 50
    assert float(imbalance(even)) == pytest.approx(-float(torch.tensor(4.0).log()), abs=1e-9)
    assert float(imbalance(one_sided)) == pytest.approx(0, abs=1e-9)


def test_a_term_has_what_it_needs(lively_teacher: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no other term asks for it; and without a student it does not count."""
    needs = frozenset({"features", "distances"})
    spread = Term("spread", lambda evidence: evidence.features.std() + len(evidence.distances), "", needs)
    asks = Term("asks", lambda evidence: evidence.student(evidence.images).sum(), "", frozenset({"student"}))
    monkeypatch.setitem(TERMS, "spread", spread)
    monkeypatch.setitem(TERMS, "asks", asks)
    teacher, images = lively_teacher(), torch.rand(4, 3, 16, 16)
    assert float(inversion_loss({"spread": 1.0}, teacher, images)) > 4
    assert float(inversion_loss({"asks": 1.0}, teacher, images)) == 0
    assert float(inversion_loss({"asks": 2.0}, teacher, images, student=lambda x: x.new_ones(3))) == 6
