from collections.abc import Callable

import pytest
import torch
from torch import nn

from methods.inversion.bn_statistics import MomentumStatistics, record_bn_distances, record_instance_means, statistics_of

pytestmark = pytest.mark.usefixtures("float64")


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_against_torch(layout: torch.memory_format) -> None:
    x = (3 + 2 * torch.randn(6, 5, 7, 7)).contiguous(memory_format=layout).requires_grad_()
    found, (var, mean) = statistics_of(x), torch.var_mean(x, dim=(0, 2, 3), correction=0)
    for one, other in zip(found, (mean, var), strict=True):
        assert torch.allclose(one, other, rtol=1e-10)
    slopes = torch.randn(2, 5)
    gradients = [torch.autograd.grad((torch.stack(pair) * slopes).sum(), x)[0] for pair in (found, (mean, var))]
    assert torch.allclose(*gradients, rtol=1e-10)


def test_statistics_under_vmap_and_twice_differentiable() -> None:
    x = torch.randn(3, 4, 2, 5, 5)

    def spread(images: torch.Tensor) -> torch.Tensor:
        return statistics_of(images)[1].square().sum()

    gradients = torch.func.vmap(torch.func.grad(spread))(x)
    for one, gradient in zip(x, gradients, strict=True):
        leaf = one.clone().requires_grad_()
        wanted = torch.autograd.grad(leaf.var((0, 2, 3), correction=0).square().sum(), leaf)[0]
        assert torch.allclose(gradient, wanted, rtol=1e-10)
    assert torch.autograd.gradgradcheck(spread, x[0, :2, :, :2, :2].clone().requires_grad_())


def test_bn_distance_by_hand() -> None:
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean.copy_(torch.tensor([1.0, 0.0]))
    x = torch.tensor([[[[0.0]], [[3.0]]], [[[2.0]], [[5.0]]]])  # means 1 and 4, biased variances 1 and 1
    with record_bn_distances(layer) as distances:
        layer(x)
    assert len(distances) == 1
    assert float(distances[0]) == pytest.approx(4.0, rel=1e-9)  # ||(0, 4)|| + ||(0, 0)||


def test_hooks_are_gone_also_after_an_exception(lively_teacher: Callable) -> None:
    network = lively_teacher().network
    with pytest.raises(RuntimeError, match="boom"), record_bn_distances(network):
        assert hooks(network) == 4
        raise RuntimeError("boom")
    assert hooks(network) == 0


def test_stacked_teachers_are_recorded_one_by_one(lively_teacher: Callable) -> None:
    """Under vmap the hooks fire once per layer and see each model's own statistics."""
    networks = [lively_teacher(seed).network for seed in (1, 2)]
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


def test_statistics_are_averaged_over_calls() -> None:
    """One layer, three calls: the second is mixed with the first, the third with the average of both."""
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean.fill_(0.5)
    layer.running_var.fill_(2.0)
    statistics = MomentumStatistics(0.9, torch.device("cpu"))
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
    other = MomentumStatistics(0.9, torch.device("cpu"))
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


def test_averages_come_back_onto_the_device() -> None:
    """The meta device stands for a card: what a checkpoint brings lies on the CPU."""
    statistics = MomentumStatistics(0.9, torch.device("meta"))
    statistics.load_state_dict({"average": [[torch.ones(3), torch.ones(3)]]})
    assert [value.device.type for pair in statistics.average for value in pair] == ["meta", "meta"]
