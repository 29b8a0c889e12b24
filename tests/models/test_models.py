import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import BACKBONES, create_classifier, create_model, model_names
from models.generator import Generator, UpsampleConv
from models.norm import BatchStatsNorm2d, merged, statistics_from, written_out
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", [name for name in model_names() if name not in ("resnet101", "resnet110")])
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
    layer = UpsampleConv(5, 7)
    x = torch.randn(2, 5, 6, 6)
    plain = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, padding=1)
    assert torch.allclose(layer(x), plain, atol=1e-12)


def test_generator_makes_images() -> None:
    images = Generator(28)(torch.randn(3, 256))
    assert images.shape == (3, 3, 28, 28)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    with pytest.raises(UserError, match="no multiple of 4"):
        Generator(30)


SLOW = pytest.param("resnet50", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["conv4", "resnet10", SLOW, "wrn16_1", "vgg11"])
def test_merged_normalisation_changes_no_answer(name: str) -> None:
    torch.manual_seed(0)
    network, x = create_model(name, 5, 32), torch.randn(4, 3, 32, 32)
    network(x)  # running statistics that say something
    before = {key: value.clone() for key, value in network.eval().state_dict().items()}
    answering = merged(network)
    assert torch.allclose(answering(x), network(x), rtol=1e-9, atol=1e-12)
    counts = [sum(isinstance(module, nn.BatchNorm2d) for module in some.modules()) for some in (network, answering)]
    assert counts[1] < counts[0]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_written_out_normalisation_equals_the_native_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchStatsNorm2d(4))
    nn.init.normal_(network[1].weight)
    copy = written_out(network)
    x = torch.randn(5, 3, 6, 6)
    assert network[1].native
    assert torch.allclose(network(x), copy(x), atol=1e-12)


def test_inductive_statistics_ignore_the_rest_of_the_batch() -> None:
    norm = BatchStatsNorm2d(4)
    x = torch.randn(6, 4, 3, 3)
    with statistics_from(norm, 2):
        first, changed = norm(x)[:2], norm(torch.cat([x[:2], 9 * x[2:]]))[:2]
    assert torch.allclose(first, changed, rtol=1e-9)
    assert torch.allclose(first, norm(x[:2]), rtol=1e-9, atol=1e-12)
    assert norm.reference is None


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ("resnet101", "resnet110", "resnet34")])
def test_every_classifier_maps_images_to_logits(name: str) -> None:
    network = create_classifier(name, 5, 32).eval()
    features, logits = network.features_and_logits(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    assert features.shape == (2, network.feature_dim)
    assert torch.allclose(network.head(features), logits, rtol=1e-9, atol=1e-12)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def test_sizes_of_fast_datafrees_networks() -> None:
    """Counted by hand: wide ResNets have 16 w, 32 w and 64 w channels in (depth - 4) / 6 blocks each."""
    for depth, widen in ((16, 1), (16, 2), (40, 1), (40, 2)):
        count, before = 16 * 27, 16
        for width in (16 * widen, 32 * widen, 64 * widen):
            for _ in range((depth - 4) // 6):
                count += 9 * before * width + 9 * width * width + 2 * before + 2 * width
                count += before * width if before != width else 0
                before = width
        count += 2 * before + (before + 1) * 10
        assert sum(p.numel() for p in create_classifier(f"wrn{depth}_{widen}", 10, 32).parameters()) == count
    small = 16 * 27 + 2 * 16 + 65 * 10
    for before, after in ((16, 16), (16, 32), (32, 64)):
        small += 9 * after * (before + after) + 4 * after + (before * after + 2 * after if before != after else 0)
    assert sum(p.numel() for p in create_classifier("resnet8", 10, 32).parameters()) == small
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512)
    convs = sum(9 * i * o + 3 * o for i, o in itertools.pairwise(widths))
    assert sum(p.numel() for p in create_classifier("vgg11", 10, 32).parameters()) == convs + 513 * 10


def test_one_name_two_networks() -> None:
    """The few-shot papers' resnet50 has a bias in its 3x3 convolutions and no normalisation in its shortcuts."""
    names = {name for name, _ in create_classifier("resnet50", 5, 32).named_parameters()}
    few_shot = {name for name, _ in create_model("resnet50", 5, 32).named_parameters()}
    assert "blocks.0.shortcut.1.weight" in names - few_shot
    assert "blocks.0.conv2.bias" in few_shot - names
    with pytest.raises(UserError, match="unknown classifier 'resnet7': choose from conv4"):
        create_classifier("resnet7", 5, 32)


def test_shufflenets_halves_take_turns() -> None:
    """As many numbers as the network that is compared with in distillation; its blocks against what they are said to do."""
    network = create_classifier("shufflenetv2", 100, 32).double().eval()
    assert sum(value.numel() for value in network.parameters()) == 1_355_528
    unit, x = network.blocks[1], torch.randn(2, 116, 5, 5, dtype=torch.float64)
    found = unit(x)
    assert torch.equal(found[:, ::2], x[:, :58])  # the half that passes
    moved = unit.norm2(unit.conv2(unit.norm1(unit.conv1(x[:, 58:])).relu()))
    assert torch.allclose(found[:, 1::2], unit.norm3(unit.conv3(moved)).relu())
