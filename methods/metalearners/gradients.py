"""Outer gradients: through the inner loop (MAML), ignoring its curvature (FOMAML), and by difference (Reptile)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datasets.episodes import Episodes
from methods.metalearners.base import Metalearner, Params, gradient_at
from utils import distributed


def meta_gradient(
    metalearner: Metalearner, params: Params, episodes: Episodes, steps: int, first_order: bool = False
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Gradient of the mean query loss with respect to `params`, the mean loss and the mean accuracy.

    First order (FOMAML; Finn et al. 2017, section 5.2) takes the inner gradients as constants. Several processes share the
    episodes; all get the whole gradient.
    """
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    means = episodes.support.new_zeros(2)  # of loss and accuracy

    def step(chunk: Episodes) -> tuple[Tensor, Tensor]:
        gradients, loss, accuracy = metalearner.outer_gradient(params, chunk, steps, not first_order, len(episodes))
        for name, gradient in gradients.items():
            total[name] += gradient
        return loss, accuracy

    own = episodes[distributed.share()]
    if len(own):
        losses, accuracies = zip(*metalearner.in_chunks(own, step), strict=True)
        means += torch.stack([torch.cat(part).sum().to(means.dtype) for part in (losses, accuracies)]) / len(episodes)
    distributed.all_sum([*total.values(), means])
    return total, means[0], means[1]


def aligned_gradient(
    losses: Sequence[Callable[[Params], Tensor]], params: Params, displacement: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Mean over tasks of the gradient of each task's loss at its own displaced parameters.

    With g_k the gradient of task k at theta and gbar their mean, task k is looked at from
    theta_k = theta - displacement * (gbar - g_k), which counts as a constant. To first order in the displacement the
    result is the gradient of  mean_k L_k + displacement / 2 * mean_k |g_k - gbar|^2 : tasks whose gradients disagree are
    penalised, without second derivatives (Wei et al., ICML 2024, implicit gradient regularization).
    Returns that gradient, the mean loss at theta, and mean_k |g_k - gbar|^2.
    """

    def gradient_of(loss: Callable[[Params], Tensor], where: Params) -> tuple[dict[str, Tensor], Tensor]:
        leaves = {name: value.detach().requires_grad_() for name, value in where.items()}
        value = loss(leaves)
        return gradient_at(leaves, value), value.detach()

    def mean_of(gradients: Sequence[Params]) -> dict[str, Tensor]:
        return {name: torch.stack([gradient[name] for gradient in gradients]).mean(0) for name in params}

    own, values = zip(*[gradient_of(loss, params) for loss in losses], strict=True)
    mean = mean_of(own)
    spread = torch.stack([(gradient[name] - mean[name]).square().sum() for gradient in own for name in params]).sum() / len(own)
    displaced = [
        gradient_of(loss, {name: value - displacement * (mean[name] - gradient[name]) for name, value in params.items()})[0]
        for loss, gradient in zip(losses, own, strict=True)
    ]
    return mean_of(displaced), torch.stack(values).mean(), spread


@torch.no_grad()
def reptile_step(params: Params, adapted: Params, rate: float) -> None:
    """theta += rate * (theta' - theta), in place (Nichol et al., 2018)."""
    for name, value in params.items():
        value.lerp_(adapted[name], rate)


def set_gradient(params: Params, gradient: Params) -> None:
    """Hand a gradient to the optimizer that owns `params`."""
    for name, value in params.items():
        value.grad = gradient[name]
