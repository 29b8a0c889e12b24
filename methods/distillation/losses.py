"""Losses between a teacher's answers and a student's."""

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
