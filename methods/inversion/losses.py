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
    theirs, mine = F.log_softmax(teacher_logits, 1), F.log_softmax(learner_logits, 1)
    divergence = (theirs.exp() * (theirs - mine)).sum(1)  # `F.kl_div` cannot be mapped over
    return -torch.where(agree, divergence, 0.0)


def jensen_shannon(one: Tensor, other: Tensor, temperature: float = 3.0) -> Tensor:
    """Mean over images of 1/2 KL(p || m) + 1/2 KL(q || m), m = (p + q) / 2, from logits (B, N) at `temperature`.

    Between 0 and log 2. DeepInversion's code takes the divergences the other way round, KL(m || p), of clamped values.
    """
    p, q = F.softmax(one / temperature, 1), F.softmax(other / temperature, 1)
    middle = ((p + q) / 2).clamp(min=1e-12).log()
    return (F.kl_div(middle, p, reduction="batchmean") + F.kl_div(middle, q, reduction="batchmean")) / 2


def imbalance(logits: Tensor) -> Tensor:
    """sum_c p_c log p_c of the batch's mean probabilities p: least where all classes are named alike often (DAFL)."""
    mean = F.softmax(logits, 1).mean(0)
    return torch.special.xlogy(mean, mean).sum()
