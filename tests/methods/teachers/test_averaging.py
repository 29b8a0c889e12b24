import pytest
import torch
from torch.func import functional_call

from methods.teachers.averaging import aligned
from models import create_model
from models.backbone import Backbone

pytestmark = pytest.mark.usefixtures("float64")


def network(arch: str, seed: int) -> Backbone:
    torch.manual_seed(seed)
    built = create_model(arch, 3, 32, norm="batch")
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def shuffled(source: Backbone) -> dict[str, torch.Tensor]:
    """The same function with every group of channels in a random order."""
    params = {name: value.detach().clone() for name, value in source.named_parameters()}
    for group in source.channels():
        order = torch.randperm(len(params[f"{group.writers[0]}.weight"]))
        for writer in group.writers:
            for part in ("weight", "bias"):
                if f"{writer}.{part}" in params:
                    params[f"{writer}.{part}"] = params[f"{writer}.{part}"][order]
        for reader in group.readers:
            weight = params[f"{reader}.weight"]
            grouped = weight if weight.dim() == 4 else weight.view(len(weight), len(order), -1)
            params[f"{reader}.weight"] = grouped[:, order].reshape(weight.shape)
    return params


ARCHITECTURES = ["conv4", "resnet10", "resnet18", pytest.param("resnet50", marks=pytest.mark.slow)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_shuffled_network_is_put_back_in_order(arch: str) -> None:
    """Shuffling must not change what it computes (so the groups are right), and aligning must undo it exactly."""
    source, x = network(arch, 0), torch.rand(2, 3, 32, 32)
    params = dict(source.named_parameters())
    mixed = shuffled(source)
    assert any(not torch.equal(mixed[name], value) for name, value in params.items())
    assert torch.allclose(functional_call(source, mixed, (x,)), source(x), rtol=1e-9, atol=1e-12)
    found = aligned(mixed, params, source.channels())
    assert all(torch.equal(found[name], value) for name, value in params.items())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_aligning_changes_no_function_and_brings_networks_nearer(arch: str) -> None:
    one, other = network(arch, 0), network(arch, 1)
    x = torch.rand(2, 3, 32, 32)
    params, target = dict(other.named_parameters()), dict(one.named_parameters())
    found = aligned(params, target, one.channels())
    assert torch.allclose(functional_call(other, found, (x,)), other(x), rtol=1e-9, atol=1e-12)

    def gap(state: dict) -> float:
        return float(sum((state[name] - target[name]).square().sum() for name in target if "head" not in name))

    assert gap(found) < gap(params)


@pytest.mark.parametrize("arch", ["conv4", "resnet10", "resnet18", "resnet50"])
def test_channels_are_compared_by_what_reads_channels_in_order_already(arch: str) -> None:
    with torch.device("meta"):
        groups = create_model(arch, 3, 32, norm="batch").channels()
    for place, group in enumerate(groups):
        later = {reader for other in groups[place + 1 :] for reader in other.readers}
        assert not later & set(group.writers[: group.compared])
