"""Networks that are not ours: torchvision's, timm's, and whatever a function of the user's builds."""

from typing import Any

import torch
from torch import nn

from models.backbone import Backbone
from utils.code import import_function
from utils.errors import UserError
from utils.vision import import_torchvision


class Foreign(Backbone):
    """Somebody's classifier as a teacher. Its head is its last linear layer; without one, its logits serve as features."""

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network = network
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        self.head = linear[-1] if linear else nn.Linear(num_classes, num_classes)
        self.has_head = bool(linear)

    @property
    def loadable(self) -> nn.Module:
        return self.network

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.features_and_logits(x)[0]

    def features_and_logits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.has_head:
            logits = self.network(x)
            return logits.flatten(1), logits
        seen: list[torch.Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(x)
        finally:
            handle.remove()
        return seen[-1].flatten(1), logits  # (B, feature_dim), (B, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)


def is_foreign(name: str) -> bool:
    return name.startswith(("torchvision/", "timm/")) or is_code(name)


def is_code(name: str) -> bool:
    """Whether an architecture's name is `module:function` or `file.py:function`, which running it would execute."""
    return ":" in name


def create_foreign(name: str, num_classes: int, weights: str | None = None) -> Foreign:
    """An untrained `torchvision/NAME`, `timm/NAME`, or what `module:function` returns for the number of classes.

    `weights` names a set of weights that torchvision downloads for the first kind ("DEFAULT": its best).
    Raises `UserError` for a name that nobody knows, for a function that gives no network, and where weights cannot be had.
    """
    family, _, rest = name.partition("/")
    try:
        if is_code(name):
            return Foreign(_from_function(name, num_classes), num_classes)
        if family == "torchvision":
            import_torchvision()
            from torchvision.models import get_model

            # with weights the width of the head is theirs
            own = {"num_classes": num_classes} if weights is None else {}
            return Foreign(get_model(rest, weights=weights, **own), num_classes)
        import_torchvision()  # timm needs it, and would fail where its operators are missing
        import timm

        return Foreign(timm.create_model(rest, pretrained=False, num_classes=num_classes), num_classes)
    except ModuleNotFoundError as error:
        raise UserError(f"arch {name!r} needs the package {error.name!r}: pip install {error.name}") from error
    except OSError as error:
        raise UserError(f"the weights {weights!r} of {name!r} cannot be downloaded ({error}): give a file instead") from error
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"arch {name!r} cannot be built: {error}") from error


def _from_function(place: str, num_classes: int) -> nn.Module:
    network: Any = import_function(place)(num_classes)
    if not isinstance(network, nn.Module):
        raise TypeError(f"it returned {type(network).__name__}; expected a torch.nn.Module")
    return network
