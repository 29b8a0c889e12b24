"""Networks: the few-shot zoo, whole-class classifiers, the generator, and readers for the papers' checkpoint files."""

from collections.abc import Callable
from functools import partial

from torch import nn

from models.backbone import Backbone
from models.conv4 import Conv4
from models.foreign import create_foreign, is_foreign
from models.norm import BatchStatsNorm2d, FixedNorm2d
from models.resnet import BasicBlock, Bottleneck, ResNet
from models.vgg import VGG11
from models.wide_resnet import WideResNet
from utils.errors import UserError

WIDE = (256, 512, 1024, 2048)
NARROW = (64, 128, 256, 512)
RESNETS: dict[str, Callable[..., Backbone]] = {
    "resnet10": partial(ResNet, BasicBlock, (1, 1, 1, 1), NARROW),
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2), NARROW),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3), NARROW),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3), WIDE),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3), WIDE),
}
WIDE_RESNETS = {f"wrn{depth}_{widen}": partial(WideResNet, depth, widen) for depth in (16, 40) for widen in (1, 2)}
MODELS = ("conv4", *RESNETS, *WIDE_RESNETS, "vgg11")
# What whole-class commands mean by a name, where that is another network than the few-shot papers mean, or torchvision's
STANDARD: dict[str, Callable[..., Backbone]] = {
    "resnet50": partial(ResNet, partial(Bottleneck, standard=True), (3, 4, 6, 3), WIDE, norm=nn.BatchNorm2d)
}
FROM_TORCHVISION = {
    "mobilenet_v2": "torchvision/mobilenet_v2",
    "mobilenetv2_imagenet": "torchvision/mobilenet_v2",
    "resnet18_imagenet": "torchvision/resnet18",
    "resnet50_imagenet": "torchvision/resnet50",
}
CLASSIFIERS = (*[name for name in MODELS if name not in STANDARD], *STANDARD, *FROM_TORCHVISION)
MIXED_ARCHITECTURES = ("conv4", "resnet10", "resnet18")  # what the papers' `--pre_backbone mix` means
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "running": nn.BatchNorm2d,
    "batch": BatchStatsNorm2d,
    "fixed": FixedNorm2d,
}


def create_model(
    name: str, num_classes: int, image_size: int, channels: int = 3, norm: str = "running", global_pool: bool = False
) -> Backbone:
    """Build a network that maps (B, channels, image_size, image_size) to (B, num_classes).

    `norm="running"` is for teachers (ordinary batch normalisation, whose running statistics inversion reads),
    `norm="batch"` for learners that are meta-trained, `norm="fixed"` for learners that were trained like teachers.
    `global_pool` concerns conv4 only: ResNets always pool globally.
    Raises `UserError` for an unknown name.
    """
    if name == "conv4":
        if image_size < 16:
            raise UserError(f"conv4 halves its input four times: image size {image_size} is below 16")
        return Conv4(num_classes, image_size, NORMS[norm], channels, global_pool=global_pool)
    if name == "vgg11":
        return VGG11(num_classes, image_size, NORMS[norm], channels)
    if name in RESNETS or name in WIDE_RESNETS:
        return (RESNETS | WIDE_RESNETS)[name](num_classes=num_classes, norm=NORMS[norm], channels=channels)
    if is_foreign(name) and norm == "running":
        return create_foreign(name, num_classes)
    raise UserError(
        f"unknown backbone {name!r}: choose from {', '.join(MODELS)}; teachers may also be torchvision/NAME, timm/NAME or "
        "module:function"
    )


def create_classifier(name: str, num_classes: int, image_size: int, weights: str | None = None) -> Backbone:
    """The network that a whole-class command (Fast-Datafree's tables) means by `name`, with ordinary batch normalisation.

    `weights` names a set of weights that torchvision has for it. Raises `UserError` for an unknown name.
    """
    if name in STANDARD:
        return STANDARD[name](num_classes=num_classes)
    if name in FROM_TORCHVISION or is_foreign(name):
        return create_foreign(FROM_TORCHVISION.get(name, name), num_classes, weights)
    if name not in MODELS:
        raise UserError(f"unknown classifier {name!r}: choose from {', '.join(CLASSIFIERS)}, torchvision/NAME or timm/NAME")
    return create_model(name, num_classes, image_size)
