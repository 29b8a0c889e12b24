"""Outer gradients: through the inner loop (MAML), ignoring its curvature (FOMAML), and by difference (Reptile)."""

import torch
from torch import Tensor

from datasets.episodes import Episodes
from methods.metalearners.base import Metalearner, Params


def meta_gradient(
    metalearner: Metalearner, params: Params, episodes: Episodes, steps: int, first_order: bool = False
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradient of the mean query loss with respect to `params`, the mean loss and the mean accuracy.

    First order (FOMAML; Finn et al. 2017, section 5.2) takes the inner gradients as constants.
    """
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    losses, accuracies = [], []
    for chunk in metalearner.chunks(episodes):
        loss, accuracy = metalearner.outer_loss(params, chunk, steps, create_graph=not first_order)
        gradients = torch.autograd.grad(
            loss.sum() / len(episodes), list(params.values()), allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(params, gradients, strict=True):
            total[name] += gradient
        losses.append(loss.detach())
        accuracies.append(accuracy)
    return total, torch.cat(losses).mean(), torch.cat(accuracies).mean()


@torch.no_grad()
def reptile_step(params: Params, adapted: Params, rate: float) -> None:
    """theta += rate * (theta' - theta), in place (Nichol et al., 2018)."""
    for name, value in params.items():
        value.lerp_(adapted[name], rate)


def set_gradient(params: Params, gradient: Params) -> None:
    """Hand a gradient to the optimizer that owns `params`."""
    for name, value in params.items():
        value.grad = gradient[name]
