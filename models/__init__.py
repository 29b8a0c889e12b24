"""Networks: one table of backbones, the generator, and readers for the papers' checkpoint files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.backbone import Backbone, Norm
from models.conv4 import Conv4
from models.foreign import create_foreign, is_foreign
from models.norm import BatchStatsNorm2d, FixedNorm2d
from models.resnet import BasicBlock, Bottleneck, ResNet
from models.shufflenet import ShuffleNetV2
from models.vgg import VGG
from models.wide_resnet import WideResNet
from utils.code import is_code
from utils.errors import UserError
from utils.names import meant


@dataclass(frozen=True)
class TrainedBy:
    """How a teacher of an architecture is trained: the optimizer, its settings, and the epochs that make its rate a fifth."""

    optimizer: type[torch.optim.Optimizer]
    settings: Mapping[str, Any]
    milestones: tuple[int, ...]


ADAM = TrainedBy(torch.optim.Adam, {}, (70,))
SGD = TrainedBy(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4}, (30, 50, 80))


@dataclass(frozen=True)
class BackboneSpec:
    """One architecture.

    make: called with num_classes, image_size, norm, channels and global_pool; least_size: pixels that its input must have.
    classifier: what whole-class commands mean by the name, where that is another network than the few-shot papers mean;
    few_shot: whether it is one of theirs at all. torchvision: its name there, for an architecture that is not ours.
    """

    make: Callable[..., Backbone] | None
    trained_by: TrainedBy = SGD
    least_size: int = 1
    classifier: Callable[..., Backbone] | None = None
    few_shot: bool = True
    torchvision: str = ""


def _conv4(width: int) -> BackboneSpec:
    def make(num_classes: int, image_size: int, norm: Norm, channels: int, global_pool: bool) -> Backbone:
        return Conv4(num_classes, image_size, norm, channels, width, global_pool)

    return BackboneSpec(make, ADAM, least_size=16)


def _vgg(*depths: int) -> BackboneSpec:
    def make(num_classes: int, image_size: int, norm: Norm, channels: int, global_pool: bool) -> Backbone:
        return VGG(depths, num_classes, image_size, norm, channels)

    return BackboneSpec(make)


def _pooling(network: Callable[..., Backbone], *shape: Any, **more: Any) -> Callable[..., Backbone]:
    """A family that pools globally, whatever the size of its images."""

    def make(num_classes: int, image_size: int, norm: Norm, channels: int, global_pool: bool) -> Backbone:
        return network(*shape, num_classes=num_classes, norm=norm, channels=channels, **more)

    return make


def _resnet(*shape: Any) -> BackboneSpec:
    return BackboneSpec(_pooling(ResNet, *shape), classifier=_pooling(ResNet, *shape, standard=True))


def _small_resnet(depth: int, widen: int) -> BackboneSpec:
    """The narrow ResNets of CIFAR (He et al., 2016): three stages of (depth - 2) / 6 blocks."""
    widths = (16 * widen, 32 * widen, 64 * widen)
    stem = 16 if widen == 1 else 32
    return BackboneSpec(_pooling(ResNet, BasicBlock, ((depth - 2) // 6,) * 3, widths, stem=stem, rectified=True))


WIDE, NARROW = (256, 512, 1024, 2048), (64, 128, 256, 512)
BACKBONES = {
    "conv4": _conv4(32),
    "conv4_64": _conv4(64),
    "resnet10": _resnet(BasicBlock, (1, 1, 1, 1), NARROW),
    "resnet18": _resnet(BasicBlock, (2, 2, 2, 2), NARROW),
    "resnet34": _resnet(BasicBlock, (3, 4, 6, 3), NARROW),
    "resnet50": _resnet(Bottleneck, (3, 4, 6, 3), WIDE),
    "resnet101": _resnet(Bottleneck, (3, 4, 23, 3), WIDE),
    "wrn16_1": BackboneSpec(_pooling(WideResNet, 16, 1)),
    "wrn16_2": BackboneSpec(_pooling(WideResNet, 16, 2)),
    "wrn40_1": BackboneSpec(_pooling(WideResNet, 40, 1)),
    "wrn40_2": BackboneSpec(_pooling(WideResNet, 40, 2)),
    "vgg8": _vgg(1, 1, 1, 1, 1),
    "vgg11": _vgg(1, 1, 2, 2, 2),
    "vgg13": _vgg(2, 2, 2, 2, 2),
    **{f"resnet{depth}": _small_resnet(depth, 1) for depth in (8, 20, 32, 56, 110)},
    **{f"resnet{depth}x4": _small_resnet(depth, 4) for depth in (8, 32)},
    "shufflenetv2": BackboneSpec(_pooling(ShuffleNetV2)),
    "mobilenetv2": BackboneSpec(None, few_shot=False, torchvision="mobilenet_v2"),
    "mobilenet_v2": BackboneSpec(None, few_shot=False, torchvision="mobilenet_v2"),
    "mobilenetv2_imagenet": BackboneSpec(None, few_shot=False, torchvision="mobilenet_v2"),
    "resnet18_imagenet": BackboneSpec(None, few_shot=False, torchvision="resnet18"),
    "resnet50_imagenet": BackboneSpec(None, few_shot=False, torchvision="resnet50"),
}
FOREIGN = BackboneSpec(None)  # what holds of architectures that are not in the table
MIXED_ARCHITECTURES = ("conv4", "resnet10", "resnet18")  # what the papers' `--pre_backbone mix` means
NORMS: dict[str, Norm] = {
    "running": nn.BatchNorm2d,
    "batch": BatchStatsNorm2d,
    "fixed": FixedNorm2d,
}


def model_names() -> tuple[str, ...]:
    """The few-shot papers' architectures, by name."""
    return tuple(name for name, spec in BACKBONES.items() if spec.few_shot)


def create_model(
    name: str, num_classes: int, image_size: int, channels: int = 3, norm: str = "running", global_pool: bool = False
) -> Backbone:
    """Build a network that maps (B, channels, image_size, image_size) to (B, num_classes).

    `norm="running"` is for teachers (ordinary batch normalisation, whose running statistics inversion reads),
    `norm="batch"` for learners that are meta-trained, `norm="fixed"` for learners that were trained like teachers.
    `global_pool` concerns conv4 only: ResNets always pool globally.
    Raises `UserError` for an unknown name, and for images that are too small.
    """
    spec = BACKBONES.get(name, FOREIGN)
    if spec.make is not None and spec.few_shot:
        if image_size < spec.least_size:
            raise UserError(f"{name} halves its input too often: image size {image_size} is below {spec.least_size}")
        return spec.make(num_classes, image_size, NORMS[norm], channels, global_pool)
    if is_foreign(name) and norm == "running":
        return create_foreign(name, num_classes, image_size)
    raise UserError(
        f"unknown backbone {name!r}: choose from {', '.join(model_names())}; teachers may also be torchvision/NAME, timm/NAME "
        f"or module:function{meant(name, model_names())}"
    )


def create_classifier(name: str, num_classes: int, image_size: int, weights: str | None = None) -> Backbone:
    """The network that a whole-class command (Fast-Datafree's tables) means by `name`, with ordinary batch normalisation.

    `weights` names a set of weights that torchvision has for it. Raises `UserError` for an unknown name, and for weights of a
    network that is not torchvision's.
    """
    spec = BACKBONES.get(name, FOREIGN)
    if is_code(name):
        raise UserError(f"{name!r} is somebody's code, which runs only as an arch in a list of --teachers, with --allow_code")
    if weights and not spec.torchvision and not name.startswith("torchvision/"):
        theirs = ", ".join(own for own, about in BACKBONES.items() if about.torchvision)
        raise UserError(f"torchvision has no weights of {name}: choose from {theirs}, torchvision/NAME, or give a file")
    if spec.torchvision or is_foreign(name):
        foreign = f"torchvision/{spec.torchvision}" if spec.torchvision else name
        return create_foreign(foreign, num_classes, image_size, weights)
    if name not in BACKBONES:
        raise UserError(
            f"unknown classifier {name!r}: choose from {', '.join(BACKBONES)}, torchvision/NAME or "
            f"timm/NAME{meant(name, BACKBONES)}"
        )
    if spec.classifier is not None:
        return spec.classifier(num_classes, image_size, nn.BatchNorm2d, 3, False)
    return create_model(name, num_classes, image_size)
