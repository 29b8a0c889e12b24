import copy
from functools import partial

import pytest
import scipy.spatial.distance
import torch
import torch.nn.functional as F
from torch import nn

from datasets.registry import CIFAR
from methods.inversion.bn_statistics import MomentumStatistics, record_bn_distances, record_instance_means
from methods.inversion.generator import InversionWeights, Settings, descend, inversion_loss
from methods.inversion.losses import adversarial_loss, imbalance, jensen_shannon
from methods.inversion.meta_generator import MetaGenerator
from methods.inversion.subjects import labels_of
from methods.teachers.manifest import TeacherRow
from methods.teachers.pool import Teacher
from models import create_model
from models.generator import Generator
from utils.images import Augmentation, shift_and_flip

pytestmark = pytest.mark.usefixtures("float64")


def teacher(seed: int = 0, way: int = 3) -> Teacher:
    torch.manual_seed(seed)
    network = create_model("conv4", way, 16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    row = TeacherRow("memory", "conv4", tuple(range(way)), (), 16, *CIFAR, "cifar100")
    return Teacher(network, row, range(way))


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


def test_bn_distance_by_hand() -> None:
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean.copy_(torch.tensor([1.0, 0.0]))
    x = torch.tensor([[[[0.0]], [[3.0]]], [[[2.0]], [[5.0]]]])  # means 1 and 4, biased variances 1 and 1
    with record_bn_distances(layer) as distances:
        layer(x)
    assert len(distances) == 1
    assert float(distances[0]) == pytest.approx(4.0, rel=1e-9)  # ||(0, 4)|| + ||(0, 0)||


def test_hooks_are_gone_also_after_an_exception() -> None:
    network = teacher().network
    with pytest.raises(RuntimeError, match="boom"), record_bn_distances(network):
        assert hooks(network) == 4
        raise RuntimeError("boom")
    assert hooks(network) == 0


def test_stacked_teachers_are_recorded_one_by_one() -> None:
    """Under vmap the hooks fire once per layer and see each model's own statistics."""
    networks = [teacher(seed).network for seed in (1, 2)]
    params, buffers = torch.func.stack_module_state(networks)
    base = networks[0]
    x = torch.rand(2, 4, 3, 16, 16)

    def distance(params: dict, buffers: dict, x: torch.Tensor) -> torch.Tensor:
        with record_bn_distances(base) as distances:
            torch.func.functional_call(base, (params, buffers), (x,))
        return torch.stack(distances).sum()

    together = torch.func.vmap(distance)(params, buffers, x)
    for network, images, value in zip(networks, x, together, strict=True):
        with record_bn_distances(network) as distances:
            network(images)
        assert float(value) == pytest.approx(float(torch.stack(distances).sum()), rel=1e-9)


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


@pytest.mark.parametrize("bn", [0.0, 0.5])
def test_inversion_leaves_teachers_unchanged(bn: float) -> None:
    subject = teacher()
    before = {name: value.clone() for name, value in subject.state_dict().items()}
    subject.train()
    inverter = MetaGenerator(
        Generator(16), partial(inversion_loss, weights=InversionWeights(bn=bn), augment=Augmentation()), Settings(2)
    )
    learner = teacher(5)
    batches, loss = inverter.invert([subject], 4, learner)
    assert all(torch.equal(before[name], value) for name, value in subject.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.parameters())
    assert hooks(subject) == 0
    assert batches[0].images.shape == (12, 3, 16, 16)
    assert 0 <= float(batches[0].images.min()) <= float(batches[0].images.max()) <= 1
    assert batches[0].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.isfinite(torch.tensor(loss))


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    subject, learner = teacher(), teacher(3)
    images, labels = torch.rand(6, 3, 16, 16), labels_of(subject, 2, torch.device("cpu"))
    torch.manual_seed(1)
    loss = inversion_loss(subject, images, labels, learner, InversionWeights(2.0, 0.5, 3.0), shift_and_flip)
    torch.manual_seed(1)
    x = shift_and_flip(images)
    with record_bn_distances(subject.network) as distances:
        logits = subject(x)
    wanted = 2 * F.cross_entropy(logits, labels) + 0.5 * sum(distances) + 3 * adversarial_loss(logits, learner(x))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-9)


def test_descent_lowers_the_loss_and_keeps_the_best_images() -> None:
    torch.manual_seed(0)
    generator = Generator(16, width=8)
    seen = []

    def loss_of(images: torch.Tensor) -> torch.Tensor:
        loss = (images - 0.9).square().mean()
        seen.append((float(loss.detach()), images.detach().clone()))
        return loss

    result = descend(generator, loss_of, 4, Settings(12, 0.02, 0.02))
    best = min(seen, key=lambda pair: pair[0])
    assert float(result.loss) == best[0]
    assert torch.equal(result.images, best[1])
    assert best[0] < 0.5 * seen[0][0]


def test_descent_leaves_what_the_loss_asks_without_gradients() -> None:
    asked = torch.ones(3, requires_grad=True)
    generator = Generator(16, width=8)
    descend(generator, lambda images: (images.mean((0, 2, 3)) * asked).sum(), 4, Settings(2, 0.02, 0.02))
    assert asked.grad is None
    assert all(parameter.grad is not None for parameter in generator.parameters())


@pytest.mark.parametrize("which", ["last", "sum"])
def test_meta_gradient_is_that_of_the_last_step_or_of_all(which: str) -> None:
    torch.manual_seed(0)
    generator = Generator(16, width=4)
    recorded: list[list[torch.Tensor]] = []

    def loss_of(images: torch.Tensor) -> torch.Tensor:
        loss = (images - 0.9).square().mean()
        recorded.append([g.clone() for g in torch.autograd.grad(loss, list(generator.parameters()), retain_graph=True)])
        return loss

    gradient = descend(generator, loss_of, 3, Settings(4, 0.01, 0.01, which)).gradient
    wanted = recorded[-1] if which == "last" else [sum(parts) for parts in zip(*recorded, strict=True)]
    for ours, theirs in zip(gradient, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-15)


class Colours(nn.Module):
    """A teacher that is easy to invert: class c is the brightness of channel c."""

    class_ids, way, image_size = (0, 1, 2), 3, 16

    @property
    def network(self) -> nn.Module:
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 10 * images.mean((2, 3))


def test_the_generator_moves_by_the_sum_over_teachers() -> None:
    """One outer step, against Adam on the gradients that the same descents give one by one."""
    torch.manual_seed(0)
    generator = Generator(16, width=8)
    loss = partial(inversion_loss, weights=InversionWeights(adv=0.0), augment=Augmentation())
    inverter = MetaGenerator(generator, loss, Settings(2, 1e-3, 1e-2), lr_outer=5e-3)
    reference = copy.deepcopy(generator)
    start = torch.get_rng_state()
    inverter.invert([Colours(), Colours()], 4)
    torch.set_rng_state(start)
    labels = torch.arange(3).repeat_interleave(4)
    total = [torch.zeros_like(parameter) for parameter in reference.parameters()]

    def loss_of(images: torch.Tensor) -> torch.Tensor:
        return loss(Colours(), images, labels, None)

    for seed in torch.randint(2**62, (2,)).tolist():  # of each teacher
        torch.manual_seed(seed)
        descent = descend(copy.deepcopy(reference), loss_of, 12, Settings(2, 1e-3, 1e-2))
        total = [one + other for one, other in zip(total, descent.gradient, strict=True)]
    optimizer = torch.optim.Adam(reference.parameters(), lr=5e-3, betas=(0.5, 0.999))
    for parameter, gradient in zip(reference.parameters(), total, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for ours, theirs in zip(generator.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_statistics_are_averaged_over_calls() -> None:
    """One layer, three calls: the second is mixed with the first, the third with the average of both."""
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean.fill_(0.5)
    layer.running_var.fill_(2.0)
    statistics = MomentumStatistics(0.9)
    torch.manual_seed(0)
    batches = [torch.randn(6, 2, 3, 3) for _ in range(3)]
    mean = [batch.mean((0, 2, 3)) for batch in batches]
    var = [batch.var((0, 2, 3), correction=0) for batch in batches]
    mixed_mean = [mean[0], 0.1 * mean[1] + 0.9 * mean[0]]
    mixed_mean.append(0.1 * mean[2] + 0.9 * mixed_mean[1])
    mixed_var = [var[0], 0.1 * var[1] + 0.9 * var[0]]
    mixed_var.append(0.1 * var[2] + 0.9 * mixed_var[1])
    for batch, wanted_mean, wanted_var in zip(batches, mixed_mean, mixed_var, strict=True):
        for seen in (torch.ones_like(batch), batch):  # only the last batch of a call is remembered
            with statistics.record(layer) as distances:
                layer(seen)
        assert float(distances[0]) == pytest.approx(float((wanted_mean - 0.5).norm() + (wanted_var - 2).norm()), rel=1e-9)
        statistics.update()
    other = MomentumStatistics(0.9)
    other.load_state_dict(statistics.state_dict())
    assert torch.equal(other.average[0][0], statistics.average[0][0])
    assert not layer._forward_pre_hooks


def test_each_image_is_described_by_its_channel_means() -> None:
    layer = nn.BatchNorm2d(2).eval()
    x = torch.rand(3, 2, 4, 4)
    with record_instance_means(layer) as means:
        layer(x)
    assert torch.allclose(means[0], x.mean((2, 3)), rtol=1e-9)
    assert not layer._forward_pre_hooks


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
