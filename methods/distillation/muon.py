"""Muon: steps along the momentum with all of its directions made equally long (Jordan et al., 2024)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
STEPS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values above 1/200 of the norm end between .68 and 1.16
ROUNDING = 1e-5  # what is far smaller than that is rounding, as of a bias before a normalisation, and moves nothing


def orthogonalised(matrix: Tensor) -> Tensor:
    """U V^T, about, of a matrix (R, C) = U S V^T, by Newton and Schulz's iteration on its own multiples; 0 of 0."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + ROUNDING)  # (r, c), r <= c
    a, b, c = QUINTIC
    for _ in range(STEPS):
        squares = x @ x.T  # (r, r)
        x = a * x + (b * squares + c * squares @ squares) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Every parameter is a matrix: a convolution of its filters, a vector of one row.

    `lr` is the root mean square of a step on a matrix of full rank, so that rates are about those of Adam (the scale is Liu et
    al.'s, 2025, without their factor). In the parameters' own precision, where PyTorch's takes matrices alone and computes in
    bfloat16, in which a second process or processor would be seen.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients; parameters without one stay."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(self._direction(parameter, parameter.grad), alpha=-group["lr"])

    def _direction(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM)  # Nesterov's
        matrix = ahead.reshape(1 if ahead.ndim < 2 else len(ahead), -1)  # (R, C)
        return (orthogonalised(matrix) * max(matrix.shape) ** 0.5).view_as(parameter)
