"""How often a classifier is right, and how often it agrees with another."""

from collections.abc import Callable

import torch
from torch import Tensor

from utils.images import to_float
from utils.metrics import Score

Classifier = Callable[[Tensor], Tensor]  # images (B, C, S, S) in [0, 1] -> logits (B, N)
BATCH = 500


@torch.no_grad()
def named(classifier: Classifier, images: Tensor, device: torch.device) -> Tensor:
    """The class that `classifier` names for each of uint8 images (M, C, S, S): (M,), on the host."""
    return torch.cat([classifier(to_float(some.to(device))).argmax(1) for some in images.split(BATCH)]).cpu()


def top1(classifier: Classifier, images: Tensor, labels: Tensor, device: torch.device) -> Score:
    """1 for each image that is named right, 0 for each other, with the interval of their mean."""
    return Score((named(classifier, images, device) == labels.cpu()).float().tolist())


def agreement(one: Classifier, other: Classifier, images: Tensor, device: torch.device) -> Score:
    """1 for each image of which both name the same class; images need no labels."""
    return Score((named(one, images, device) == named(other, images, device)).float().tolist())
