import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import MODELS, create_model
from models.generator import Generator, UpsampleConv
from models.norm import BatchStatsNorm2d, statistics_from, written_out
from utils.errors import UserError


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet101"])
@pytest.mark.parametrize("norm", ["running", "batch"])
def test_every_backbone_maps_images_to_logits(name: str, norm: str) -> None:
    network = create_model(name, 5, 16, norm=norm)
    x = torch.rand(2, 3, 16, 16)
    assert network(x).shape == (2, 5)
    assert network.features(x).shape == (2, network.feature_dim)
    names = [name for name, _ in network.named_parameters()]
    assert len(names) == len(set(names)) == len({id(value) for value in network.parameters()})
    assert any(isinstance(module, BatchStatsNorm2d) for module in network.modules()) == (norm == "batch")


def test_sizes_of_the_papers_networks() -> None:
    """Counted by hand: conv4 at 32 and 84 pixels, ResNet10's stages."""
    conv4 = (3 * 9 + 1) * 32 + 3 * (32 * 9 + 1) * 32 + 4 * 64
    assert sum(p.numel() for p in create_model("conv4", 5, 32).parameters()) == conv4 + (128 + 1) * 5
    assert sum(p.numel() for p in create_model("conv4", 5, 84).parameters()) == conv4 + (800 + 1) * 5
    assert create_model("conv4", 5, 84, global_pool=True).feature_dim == 32
    widths, total = [64, 64, 128, 256, 512], 64 * 27 + 128
    for before, after in itertools.pairwise(widths):
        total += 9 * after * (before + after) + 4 * after + (before * after + 2 * after if before != after else 0)
    assert sum(p.numel() for p in create_model("resnet10", 5, 32).parameters()) == total + 513 * 5


def test_unknown_backbones_are_listed() -> None:
    with pytest.raises(UserError, match="choose from conv4"):
        create_model("conv5", 5, 32)
    with pytest.raises(UserError, match="below 16"):
        create_model("conv4", 5, 8)


def test_pooling_before_relu_changes_nothing() -> None:
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(F.relu(F.max_pool2d(x, 2)), F.max_pool2d(F.relu(x), 2))


def test_upsample_and_convolution_in_one() -> None:
    layer = UpsampleConv(5, 7).double()
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    plain = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, layer.bias, padding=1)
    assert torch.allclose(layer(x), plain, atol=1e-12)


def test_generator_makes_images() -> None:
    images = Generator(28)(torch.randn(3, 256))
    assert images.shape == (3, 3, 28, 28)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    with pytest.raises(ValueError, match="multiple of 4"):
        Generator(30)


def test_written_out_normalisation_equals_the_native_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchStatsNorm2d(4)).double()
    nn.init.normal_(network[1].weight)
    copy = written_out(network)
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    assert network[1].native
    assert torch.allclose(network(x), copy(x), atol=1e-12)


def test_inductive_statistics_ignore_the_rest_of_the_batch() -> None:
    norm = BatchStatsNorm2d(4)
    x = torch.randn(6, 4, 3, 3)
    with statistics_from(norm, 2):
        first, changed = norm(x)[:2], norm(torch.cat([x[:2], 9 * x[2:]]))[:2]
    assert torch.allclose(first, changed)
    assert torch.allclose(first, norm(x[:2]), atol=1e-5)
    assert norm.reference is None
