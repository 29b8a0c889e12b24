"""How sure an answer may be, by what the support set says of itself: a temperature, and when a query is of no class shown.

Every image of the support is held out once and classified by the others. How well that goes says how far to trust the answers
(a temperature: Guo et al., On Calibration of Modern Neural Networks, ICML 2017), and how large the best answer must be.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.metalearners.base import Metalearner, Params

TEMPERATURES = torch.logspace(-2, 2, 161)  # that are tried: steps of 6 %
DOUBT = 0.5  # of the logarithm of a temperature, before anything was held out: its standard deviation around 0
BINS = 15  # of confidence, of equal width


def folds(labels: Tensor) -> Iterator[Tensor]:
    """Masks (M,) of the images to hold out together: the first of each class, the second, and so on.

    labels (M,). A class with fewer images than another is held out less often, and one with a single image never.
    """
    rank = torch.stack([(labels[:place] == label).sum() for place, label in enumerate(labels)])
    counts = (labels[:, None] == labels).sum(1)
    for number in range(int(rank.max()) + 1):
        mask = (rank == number) & (counts > 1)
        if bool(mask.any()):
            yield mask


def held_out(
    metalearner: Metalearner, params: Params, support: Tensor, labels: Tensor, way: int, steps: int
) -> tuple[Tensor, Tensor]:
    """Logits (H, N) and labels (H,) of the support's images (M, C, H, W), each classified by others of its class and the rest.

    Empty for a support of one image a class.
    """
    logits, own = [], []
    for mask in folds(labels):
        logits.append(metalearner.answer(params, support[~mask], labels[~mask], support[mask], way, steps).detach())
        own.append(labels[mask])
    if not logits:
        return support.new_zeros(0, way), labels[:0]
    return torch.cat(logits), torch.cat(own)


def temperature_for(logits: Tensor, labels: Tensor) -> float:
    """The most probable temperature T, where logits / T, (B, N), with labels (B,) are log-probabilities.

    Before, log T counts as normal around 0 (`DOUBT`): so the few images of a support move it as far as they can tell.
    """
    tried = TEMPERATURES.double()
    losses = (tried.log() / DOUBT).square() / 2
    losses += torch.stack([F.cross_entropy(logits.double() / float(one), labels, reduction="sum").cpu() for one in tried])
    return float(tried[losses.argmin()])


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error of probabilities (B, N) with labels (B,): how far confidence lies from accuracy."""
    confidence, named = probabilities.double().max(1)
    right = (named == labels).double()
    place = (confidence * BINS).long().clamp(max=BINS - 1)  # (B,)
    gaps = torch.zeros(BINS, dtype=torch.double, device=place.device).index_add_(0, place, right - confidence)
    return float(gaps.abs().sum()) / len(labels)


def least_logit(logits: Tensor, labels: Tensor, refused: float) -> float:
    """The best logit below which a query counts as of no class: `refused` (0..1) of the held-out (H, N), (H,) would be.

    Of each image its own class's logit counts. Without held-out images no query is refused.
    """
    if not len(logits):
        return -torch.inf
    return float(logits.gather(1, labels[:, None]).double().quantile(refused))
