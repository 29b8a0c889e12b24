"""The formula that makes every input of the reference cases, and how an output is compared with what the papers' code gave.

Every case stands in a JSON file beside this one: `case`, `what` (the mathematics), `where` (the released code), `inputs` and
`outputs`, made by the papers' released functions in float64.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)


def cases(paper: str) -> dict[str, dict[str, Any]]:
    """The cases of a file, by name."""
    return {entry["case"]: entry for entry in json.loads((FOLDER / f"{paper}.json").read_text(encoding="utf-8"))}


def value(k: int, n: int, scale: float, shift: float = 0.0) -> Tensor:
    """shift + scale * sin(12.9898 i + 78.233 (k + 1)) for i below n: k says which tensor."""
    return shift + scale * torch.sin(torch.arange(n, dtype=torch.float64) * 12.9898 + 78.233 * (k + 1))


def images(k: int, *shape: int) -> Tensor:
    """Images in [0, 1]."""
    return (0.5 + 0.5 * value(k, math.prod(shape), 1.0)).reshape(shape)


def latents(k: int, *shape: int) -> Tensor:
    """Latents, and pixels in a normalised space."""
    return value(k, math.prod(shape), 1.5).reshape(shape)


@torch.no_grad()
def fill(network: nn.Module, offset: int, statistics: int = 500) -> nn.Module:
    """Give `network` the formula's numbers, in the order in which its layers are registered, weight before bias.

    `statistics`: where the numbers of the running statistics begin beyond `offset` (500, or 50 on some pages).
    """
    number = layer = 0
    for module in network.modules():
        own = dict(module.named_parameters(recurse=False))
        norm = hasattr(module, "weight") and own and module.weight.dim() == 1
        for name in ("weight", "bias"):
            if name not in own:
                continue
            tensor = own[name]
            scale = 0.1 if norm or name == "bias" else 1 / math.sqrt(tensor[0].numel())
            shift = 1.0 if norm and name == "weight" else 0.0
            tensor.copy_(value(offset + number, tensor.numel(), scale, shift).view_as(tensor))
            number += 1
        if norm:
            if isinstance(module, NORMS) and module.running_mean is not None and module.running_var is not None:
                width = len(module.running_mean)
                module.running_mean.copy_(value(offset + statistics + 2 * layer, width, 0.1))
                module.running_var.copy_(value(offset + statistics + 1 + 2 * layer, width, 0.3, 1.0))
            layer += 1
    return network


def digest(found: Tensor | Iterable[Tensor]) -> dict[str, Any]:
    """What a reference keeps of a tensor, or of a list of tensors joined into one vector."""
    tensors = [found] if isinstance(found, Tensor) else list(found)
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    return {
        "sum": float(flat.sum()),
        "norm": float(flat.norm()),
        "dot": float(flat @ value(999, len(flat), 1.0)),
        "first": flat[:5].tolist(),
    }


def error(found: Any, wanted: Any) -> float:
    """Relative error of an output: of norm, dot product and first numbers in units of the norm, or of plain numbers."""
    if isinstance(wanted, Mapping) and "norm" in wanted:
        own, scale = digest(found), max(wanted["norm"], 1e-300)
        length = wanted["shape"][-1] if "tensors" in wanted["shape"] else math.prod(wanted["shape"])
        apart = [
            abs(own["norm"] - wanted["norm"]) / scale,
            abs(own["dot"] - wanted["dot"]) / (scale * math.sqrt(max(1, length))),
            abs(own["sum"] - wanted["sum"]) / (scale * math.sqrt(max(1, length))),
            *[abs(one - other) / scale for one, other in zip(own["first"], wanted["first"], strict=False)],
        ]
        return max(apart)
    if isinstance(wanted, (list, tuple)):
        if len(found) != len(wanted):
            return math.inf
        return max((error(one, other) for one, other in zip(found, wanted, strict=True)), default=0.0)
    number = float(found)
    return abs(number - wanted) / max(1.0, abs(wanted))
