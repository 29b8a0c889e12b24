"""Losses between a teacher's answers and a student's."""

import torch
import torch.nn.functional as F
from torch import Tensor


def kl_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 / B * sum_b KL(softmax(t_b / T) || softmax(s_b / T)), from logits (B, N) (Hinton et al., 2015).

    From log-probabilities and averaged over images, not over all B*N entries.
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student_logits / temperature, 1),
        F.log_softmax(teacher_logits / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )


def regression(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of outputs (B, D), in units of the targets' variance over the batch: 1 is knowing nothing."""
    return F.mse_loss(outputs, targets) / targets.var(0, correction=0).mean().clamp(min=1e-12)


def relational(outputs: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """How differently student and teachers see which images of a batch are alike, from (B, D) and (B, D').

    1/B sum_b KL(p_b || q_b), where p_b and q_b are softmaxes of an image's cosines with the others, about the batch's
    mean, at `temperature` (after Passalis and Tefas, ECCV 2018).
    """

    def similarities(values: Tensor) -> Tensor:
        unit = F.normalize(values - values.mean(0))
        own = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        return (unit @ unit.T / temperature).masked_fill(own, -1e9)  # (B, B)

    return kl_divergence(similarities(targets), similarities(outputs))
