"""The only door to torchvision.

A torchvision wheel beside a CPU-only torch fails at import because its compiled operators are absent. We need none of
them, so on exactly that failure the two operators that the Python side looks up are declared, and the import is tried
again. Declaring them on a healthy installation would abort the process, hence only after the failure.
"""

import importlib
import sys
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []  # a Library object must stay alive for its operators to exist


def import_torchvision() -> ModuleType:
    """Import torchvision, with or without its compiled operators."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)
    return importlib.import_module("torchvision")
