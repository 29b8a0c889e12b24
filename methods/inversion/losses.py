"""The terms of inversion, as pure functions of logits and images."""

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial_loss(teacher_logits: Tensor, learner_logits: Tensor) -> Tensor:
    """Minus the disagreement of two classifiers where they still name the same class.

    -(1/B) sum_b 1[argmax t_b = argmax s_b] KL(t_b || s_b), from logits (B, N): divided by all images; the mask carries
    no gradient; temperature 1 (Fang et al., AAAI 2022, and the data-free meta-learning papers after it).
    """
    agree = teacher_logits.argmax(1) == learner_logits.argmax(1)  # (B,)
    return adversarial_terms(teacher_logits, learner_logits, agree).mean()


def adversarial_terms(teacher_logits: Tensor, learner_logits: Tensor, agree: Tensor) -> Tensor:
    """-KL(t_b || s_b) of each image where the mask `agree` (B,) holds, else 0: (B,)."""
    divergence = F.kl_div(F.log_softmax(learner_logits, 1), F.log_softmax(teacher_logits, 1), reduction="none", log_target=True)
    return -torch.where(agree, divergence.sum(1), 0.0)
